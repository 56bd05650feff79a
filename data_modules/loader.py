"""A loader that goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.data.epochs import EpochSampler
from tagi_lightning.preemption import signals_blocked


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over an `EpochSampler` that goes on after the last batch it yielded.

    Lightning saves its state with a checkpoint and restores it before the interrupted epoch goes on.
    """

    batch_sampler: EpochSampler

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        """Takes a DataLoader's arguments; the random numbers of the model's dropout stay as they are."""
        super().__init__(dataset, generator=torch.Generator(), **kwargs)

    def __iter__(self) -> Iterator[TaskBatch]:  # type: ignore[override]
        sampler = self.batch_sampler
        sampler.position = sampler.start
        with signals_blocked():  # workers leave them to the process that trains
            batches = super().__iter__()
        for batch in batches:
            sampler.position += 1
            yield batch

    def __len__(self) -> int:
        """Returns the turns of an epoch."""
        return self.batch_sampler.turns

    def forever(self) -> Iterator[TaskBatch]:
        """Yields batches without end, epoch after epoch."""
        for epoch in count():
            self.batch_sampler.set_epoch(epoch)
            yield from self

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and the number of its batches yielded so far."""
        return {"epoch": self.batch_sampler.epoch, "position": self.batch_sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues the epoch of `state` after the batches that were yielded."""
        self.batch_sampler.seek(state["epoch"], state["position"])

"""Epochs of batches: planned for all ranks at once, shared among them, begun anywhere."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from tagi_lightning.data.tokenized import ExampleIndex

Batch = list[ExampleIndex]

Row = TypeVar("Row")


def random_generator(*key: object) -> np.random.Generator:
    """Returns a generator that depends on `key` alone, in every process and on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class EpochSampler(Sampler[Batch]):
    """Yields the batches an epoch plans, from a start position on, and of each this rank's share.

    The sequence of global batches does not depend on `world_size`. A turn is what the ranks read at once: `together`
    global batches, each shared by world_size / together ranks in contiguous parts. Batches are task by task, so that
    parts keep tasks together. A rank for which nothing is left reads a part again, with `weight` 0. Lightning must
    leave such a sampler alone: set `use_distributed_sampler=False` in the Trainer.

    Attributes:
        epoch: The epoch that iteration yields.
        start: Position of the turn that the next iteration starts with.
        position: Number of the epoch's turns consumed so far; the loader counts, as workers ask ahead.
        together: Global batches in a turn; must divide `world_size`.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size, self.together = rank, world_size, 1
        self._weights: dict[int, float] = {}
        self.seek(0, 0)

    @abstractmethod
    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`, as many in every epoch."""

    @property
    def sampler(self) -> EpochSampler:
        """Itself: Lightning calls `set_epoch` on the `sampler` of a DataLoader's batch sampler."""
        return self

    @property
    def turns(self) -> int:
        """Turns of an epoch."""
        return -(-len(self) // self.together)  # type: ignore[arg-type]

    @property
    def weight(self) -> float:
        """What the mean over this rank's part of the last turn counts in the mean over all ranks' parts.

        It makes of that mean the mean over the global batches, each a mean over its examples.
        """
        return self._weights.get(self.position - 1, 1.0)

    def set_epoch(self, epoch: int) -> None:
        """Goes to `epoch`, from its first batch unless it is the current one."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Goes to the turn at `position` of `epoch`, where the next iteration starts; any further one at the first."""
        self.epoch, self.start, self.position = epoch, position, position

    def take_whole(self) -> None:
        """Leaves this rank with the whole of every batch, whatever the others read."""
        self.rank, self.world_size, self.together = 0, 1, 1

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        batches, self._weights = self.plan(self.epoch), {}
        sharing = self.world_size // self.together
        for turn in range(start, self.turns):
            place, rank = turn * self.together + self.rank // sharing, self.rank % sharing
            batch = batches[min(place, len(batches) - 1)]
            part = share(batch, rank, sharing)
            is_repeated = place >= len(batches) or rank >= len(batch)
            self._weights[turn] = 0.0 if is_repeated else len(part) * sharing / len(batch)
            yield part

    def join(self, parts: Sequence[Sequence[Row]]) -> list[Row]:
        """Puts together what the ranks made of their parts, in the order of the plan and without what was repeated.

        Args:
            parts: The rows of each rank, one for each example, of the same first turns or of all.

        Raises:
            ValueError: If rows are missing.
        """
        joined: list[Row] = []
        taken = [0] * self.world_size
        for batch in self.plan(self.epoch):
            if taken == list(map(len, parts)):
                break
            for rank in range(self.world_size):
                size = len(share(batch, rank, self.world_size))
                joined += parts[rank][taken[rank] : taken[rank] + size] if rank < len(batch) else []
                taken[rank] += size
        if taken != list(map(len, parts)):
            raise ValueError(f"ranks gave {list(map(len, parts))} rows, and their parts of the batches have {taken}")
        return joined


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """Returns a rank's contiguous share of a global batch, never empty."""
    if len(batch) < world_size:
        return [batch[rank % len(batch)]]
    start, stop = (len(batch) * place // world_size for place in (rank, rank + 1))
    return batch[start:stop]

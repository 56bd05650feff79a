"""What several devices make of their parts of a batch, put together."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from tagi_lightning.data.epochs import EpochSampler
from tagi_lightning.evaluation.predictions import Prediction, read_predictions, write_predictions

Row = TypeVar("Row")


def present_sampler(trainer: L.Trainer) -> EpochSampler:
    """Returns the sampler of the batches that the trainer reads at present."""
    loaders: Any = trainer.train_dataloader if trainer.training else trainer.test_dataloaders or trainer.val_dataloaders
    sampler: EpochSampler = loaders.batch_sampler
    return sampler


def part_weight(trainer: L.Trainer) -> float:
    """Returns what the mean over this device's part of the present batch counts in the mean over all devices."""
    return present_sampler(trainer).weight if trainer.world_size > 1 else 1.0


def over_devices(trainer: L.Trainer, mean: Tensor) -> Tensor:
    """Returns the mean over the whole batch, of the means over the devices' parts; all devices must call it."""
    if trainer.world_size == 1:
        return mean
    total = mean.detach() * part_weight(trainer)
    torch.distributed.all_reduce(total)
    return total / trainer.world_size


def gather(trainer: L.Trainer, value: Row) -> list[Row]:
    """Returns what each device gives, on every device."""
    values: list[Any] = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def gather_state(trainer: L.Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns each device's state of plain types and tensors, on every device."""
    if trainer.world_size == 1:
        return [state]
    # torch sends objects in an older form, which does not hold every tensor
    stream = BytesIO()
    torch.save(state, stream)
    return [torch.load(BytesIO(each), weights_only=True) for each in gather(trainer, stream.getvalue())]


def gather_rows(trainer: L.Trainer, rows: list[Row]) -> list[Row]:
    """Returns the rows of all devices, one for each example that was read, in the order of one device."""
    return rows if trainer.world_size == 1 else present_sampler(trainer).join(gather(trainer, rows))


def merge_predictions(trainer: L.Trainer, rows: list[Prediction], folder: Path) -> list[Prediction]:
    """Returns the rows of all devices as `gather_rows` does, by way of a file of each device's in `folder`.

    The files go once all devices have read them; those of a run that was stopped stay.
    """
    if trainer.world_size == 1:
        return rows
    paths = [folder / f"predictions.device-{rank}.jsonl" for rank in range(trainer.world_size)]
    own = paths[trainer.global_rank]
    write_predictions(own, rows, overwrite=True)
    trainer.strategy.barrier()
    merged = present_sampler(trainer).join([read_predictions(path) for path in paths])
    trainer.strategy.barrier()
    own.unlink()
    return merged

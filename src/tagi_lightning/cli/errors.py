"""Errors whose message is all a user needs: told in one piece, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tagi_lightning.backbones.loading import BackboneError
from tagi_lightning.cli.runs import RunFolderError
from tagi_lightning.data.report import DataError
from tagi_lightning.stages.base import MissingInputError
from tagi_lightning.storage.serialization import ModelFolderError

TOLD_ERRORS = (
    BackboneError,
    DataError,
    MisconfigurationException,
    MissingInputError,
    ModelFolderError,
    OSError,
    RunFolderError,
    ValueError,
)


class MemoryTooSmallError(ValueError):
    """A device or the machine has too little memory; the message says what to lower."""


@contextmanager
def memory_told() -> Iterator[None]:
    """Says what to lower where memory runs out.

    Raises:
        MemoryTooSmallError: If it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error).split("\n")[0]
        # the CPU's allocator has no error of its own
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in told:
            raise
        raise MemoryTooSmallError(
            f"out of memory ({told or type(error).__name__}). The last checkpoint is as it was; the same command goes "
            "on with --backbone.gradient_checkpointing=true or with more devices, which share each batch (TRAINER=ddp, "
            "fsdp). In another RUN: lower data.tasks_per_batch, instances_per_task or batch_size and raise "
            "trainer.accumulate_grad_batches by as much, lower data.max_input_length, or take "
            "--backbone.dtype=bfloat16. In evaluation: lower data.eval_batch_size. tagi check tells what a run needs"
        ) from error

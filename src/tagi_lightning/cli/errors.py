"""Errors whose message is all a user needs: told in one piece, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

TOLD_ERRORS = (MisconfigurationException, OSError, ValueError)
"""What every error that is told derives from."""


class MemoryTooSmallError(ValueError):
    """A device or the machine has too little memory; the message says what to lower."""


@contextmanager
def told_plainly() -> Iterator[None]:
    """Makes errors that are told of what Lightning calls misconfigured and of memory that runs out.

    Raises:
        MemoryTooSmallError: If it does; the message says what to lower.
        ValueError: For Lightning's.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
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

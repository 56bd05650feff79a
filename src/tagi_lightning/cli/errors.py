"""Errors whose message is all a user needs: told in one piece, without a traceback."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

TOLD_ERRORS = (MisconfigurationException, OSError, ValueError)
"""What every error that is told derives from."""

NO_SUBTYPE = "Does not validate against any of the Union subtypes"
"""How jsonargparse begins what it says of a class whose constructor failed."""


def brief(message: str) -> str:
    """Returns what a parser's message says, without what was tried and every type that is allowed elsewhere."""
    lines = [line.strip() for line in message.partition("Given value")[0].splitlines()]
    if "Errors:" in lines:
        lines = [line.removeprefix("- ") for line in lines[lines.index("Errors:") + 1 :]]
        lines = [line for line in lines if line != "Expected a <class 'NoneType'>"]
    lines = [line for line in lines if line and not line.startswith(("Problem with given class_path", "Parser key"))]
    return " ".join(lines) or message


def with_option(message: str) -> str:
    """Returns what a parser's message says, behind the option that it is about."""
    # a class's own options are told inside the message about the class
    keys = re.findall(r'Parser key "([^"]+)"', message.partition("Given value")[0])
    value = re.search(r"^ *Given value: (?!Namespace|NestedArg)(.{1,100})$", message, re.MULTILINE)
    text = brief(message) + (f". Got value: {value[1]}" if value else "")
    return f"--{'.init_args.'.join(keys)}: {text}" if keys else text


@contextmanager
def told_briefly() -> Iterator[None]:
    """Makes errors of constructors that the parser calls what they were, without the configuration they were given.

    Raises:
        ValueError: With the constructor's reason.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(NO_SUBTYPE):
            raise
        raise ValueError(brief(str(error))) from error


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

"""The options of several verbs that give one instruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tagi_lightning.data.instruction import Instruction


def one_instruction(
    instruction: str | None,
    definition: str | None,
    positive: Sequence[dict[str, str]] | None,
    task: str | None,
) -> Instruction | None:
    """Returns the instruction that the options give, None where they give none.

    Raises:
        ValueError: If several options give one, it is empty, or an example is none.
        DataError: If a task file is none.
    """
    from tagi_lightning.data.instruction import Instruction, read_task_instruction
    from tagi_lightning.data.task import Demonstration

    given = {"--instruction": instruction, "--definition": definition, "--task": task}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"give one of {', '.join(given)}; got {' and '.join(named)}")
    if positive and named != ["--instruction"] and named != ["--definition"]:
        raise ValueError("--positive goes with --instruction or --definition; tasks and files bring their own examples")
    if not named:
        return None
    if task is not None:
        return read_task_instruction(Path(task))
    text = instruction if instruction is not None else definition
    if not text or not text.strip():
        raise ValueError(f"{named[0]} is empty; say in words what the task is")
    if wrong := [each for each in positive or () if each.keys() != {"input", "output"}]:
        raise ValueError(f'--positive takes examples such as {{"input": "2 3", "output": "5"}}, got {wrong[0]}')
    return Instruction(text, tuple(Demonstration(each["input"], each["output"]) for each in positive or ()))

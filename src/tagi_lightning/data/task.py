"""The units every data source is turned into: tasks, their demonstrations and their instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Setting = Literal["def", "def+2pos"]
"""What an instruction shows: the definition, or also two demonstrations."""
SETTINGS: tuple[Setting, ...] = get_args(Setting)
DEMONSTRATIONS: dict[Setting, int] = {"def": 0, "def+2pos": 2}
"""Demonstrations that an instruction shows in each setting."""


def checked_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """Returns settings that there are.

    Raises:
        ValueError: If one is unknown; the message lists those that are allowed.
    """
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        raise ValueError(f"unknown settings {', '.join(unknown)}; choose from {', '.join(SETTINGS)}")
    return tuple(settings)


DataKind = Literal["test", "wrong_instruction", "paraphrased", "held_out", "each_demonstration", "few_shot"]
"""Which instances a system answers: of test tasks, those each with another test task's instruction or with its own in
other words, or held-out ones of the training tasks; or of test tasks in passes, one for each demonstration, or one for
each data set after training on its demonstrations."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One worked example that an instruction may show."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One example of a task: the paper's b (input) and c (target).

    Attributes:
        id: Unique within its task.
        input: The bare instance text, without output cue.
        references: Acceptable outputs, at least one.
        choices: Answer choices of a ranked task, else empty.
        gold: Index of the right choice, or None where there are no choices.
        prompt: The complete prompt, (a;b), where it is not definition and input joined (P3); else empty.
    """

    id: str
    input: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction (the paper's a) with the instances it applies to.

    Attributes:
        name: Unique within its task set, e.g. the file name without suffix.
        category: The group that shares one teacher adapter.
        definitions: Phrasings of the definition; evaluation uses the first.
        demonstrations: Positive examples in their given order; may be empty.
        instances: The task's examples.
        dataset: Source data set (P3), else empty.
        template: Prompt template's name (P3), else empty.
    """

    name: str
    category: str
    definitions: tuple[str, ...]
    demonstrations: tuple[Demonstration, ...]
    instances: tuple[Instance, ...]
    dataset: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class TaskSplits:
    """The tasks of one experiment; a task's name stands in one split only, unless `validation` holds out instances."""

    train: Sequence[Task]
    validation: Sequence[Task]
    test: Sequence[Task]

"""Tokenised tasks: the pieces of prompts, read from a memory-mapped token cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tagi_lightning.data.prompts import PromptAssembler
from tagi_lightning.data.report import DataReport


class ExampleIndex(NamedTuple):
    """Where a sampler points.

    Attributes:
        task: Index of the task.
        instance: Index of the instance within its task.
        epoch: Epoch that decides which phrasing and reference are drawn; None for the first of each.
    """

    task: int
    instance: int
    epoch: int | None


@dataclass(frozen=True, slots=True)
class TokenizedTask:
    """A task's own pieces, and where its instances lie.

    Attributes:
        name: Unique within its task set.
        category: The group that shares one teacher adapter.
        definitions: Ids of each phrasing of the definition.
        demonstrations: Ids of each demonstration.
        start: Row of its first instance.
        count: Number of its instances.
    """

    name: str
    category: str
    definitions: tuple[list[int], ...]
    demonstrations: tuple[list[int], ...]
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Example:
    """One instance with its task.

    Attributes:
        index: Where it was found.
        task: The task it belongs to.
        id: The instance's id.
        text: Its input.
        references: Its acceptable outputs.
        text_ids: Ids of the input's text, without cue.
        reference_ids: Ids of each reference.
        prompt_ids: Ids of the complete prompt, where it is not definition and input joined.
        choices: Answer choices of a ranked task.
        choice_ids: Ids of each choice.
        gold: Index of the right choice, -1 where there are no choices.
    """

    index: ExampleIndex
    task: TokenizedTask
    id: str
    text: str
    references: tuple[str, ...]
    text_ids: list[int]
    reference_ids: list[list[int]]
    prompt_ids: Sequence[int] = ()
    choices: tuple[str, ...] = ()
    choice_ids: Sequence[list[int]] = ()
    gold: int = -1


_EXAMPLE_COLUMNS = (
    *("id", "text", "references", "text_ids", "reference_ids"),
    *("prompt_ids", "choices", "choice_ids", "gold"),
)
"""Columns of the instances, in the order of `Example`'s fields."""


@dataclass(frozen=True)
class TokenizedTasks:
    """A set of tasks with their instances; the dataset of a DataLoader whose sampler yields `ExampleIndex`.

    Attributes:
        tasks: The tasks in their order.
        instances: One row an instance: what `Example` holds of it, and the lengths that the methods below return.
    """

    tasks: Sequence[TokenizedTask]
    instances: Dataset = field(repr=False)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: ExampleIndex) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[ExampleIndex]) -> list[Example]:
        """Returns the examples at `indices` in one read."""
        tasks = [self.tasks[index.task] for index in indices]
        rows = [task.start + index.instance for task, index in zip(tasks, indices, strict=True)]
        found = self.instances[rows]
        return [
            Example(
                index, task, id, text, tuple(references), text_ids, reference_ids, prompt_ids, tuple(choices), *ranked
            )
            for index, task, id, text, references, text_ids, reference_ids, prompt_ids, choices, *ranked in zip(
                indices, tasks, *(found[name] for name in _EXAMPLE_COLUMNS), strict=True
            )
        ]

    def text_lengths(self) -> list[NDArray[np.int64]]:
        """Returns, for each task, the tokens of each of its instances' texts."""
        return self._by_task("text_length")

    def prompt_lengths(self) -> list[NDArray[np.int64]]:
        """Returns, for each task, the tokens of each of its instances' complete prompts, 0 where it has none."""
        return self._by_task("prompt_length")

    def reference_lengths(self) -> list[NDArray[np.int64]]:
        """Returns, for each task, the tokens of each of its instances' references, on average and rounded."""
        return self._by_task("reference_length")

    def target_lengths(self) -> NDArray[np.int64]:
        """Returns the tokens of each instance's longest reference or answer choice."""
        return self._column("target_length")

    def _by_task(self, name: str) -> list[NDArray[np.int64]]:
        lengths = self._column(name)
        return [lengths[task.start : task.start + task.count] for task in self.tasks]

    def _column(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self.instances.with_format("numpy", columns=[name])[:][name]
        return column


def check_lengths(
    tasks: TokenizedTasks,
    assembler: PromptAssembler,
    with_prompt: bool,
    report: DataReport,
    demonstrated: PromptAssembler | None = None,
) -> None:
    """Reports what the length limits do to `tasks`.

    A definition that leaves no room for any input is an error. Dropped demonstrations and truncated
    inputs, prompts and targets are notes.

    Args:
        tasks: The tasks to check.
        assembler: Holds the limits.
        with_prompt: Whether concatenated prompts are built, too.
        report: Receives the findings.
        demonstrated: Joins demonstrations and prompts; None where batches show none.
    """
    limit, truncated = assembler.max_input_length, "truncated to the limit"
    found = zip(tasks.tasks, tasks.text_lengths(), tasks.prompt_lengths(), strict=True)
    for task, lengths, prompts in found:
        longest = max(len(definition) for definition in task.definitions)
        if assembler.input_room(longest) < 1:
            report.error(f"definition alone longer than max_input_length={limit}", f"{task.name} ({longest} tokens)")
            continue
        shown = [len(piece) for piece in task.demonstrations[: assembler.max_demonstrations]]
        if assembler.demonstrations_that_fit(shown, assembler.instruction_room(longest)) < len(shown):
            report.note("instruction without all its demonstrations: they do not fit", task.name)
        _note_rows(report, f"input {truncated}", task, lengths > assembler.input_room())
        if demonstrated is not None:
            complete = prompts.clip(max=assembler.input_room()) if prompts.any() else longest + lengths
            _check_demonstrations(report, task, complete, assembler.instruction_room(0), demonstrated)
        if with_prompt and prompts.any():
            _note_rows(report, f"complete prompt {truncated}", task, prompts > assembler.input_room())
        elif with_prompt:
            room = assembler.input_room(longest)
            _note_rows(report, f"input in its concatenated prompt {truncated}", task, lengths > room)
            dropped = (lengths > room - sum(shown)) & bool(shown)
            _note_rows(report, "prompt without all its demonstrations: they do not fit", task, dropped)
    too_long = int((tasks.target_lengths() > assembler.max_output_length - 1).sum())
    if too_long:
        report.note(f"target {truncated}", f"{too_long} of {len(tasks)} instances")


def _check_demonstrations(
    report: DataReport, task: TokenizedTask, prompts: NDArray[np.int64], limit: int, demonstrated: PromptAssembler
) -> None:
    """Notes demonstrations beyond `limit` tokens, which no batch shows, and prompts that not all others fit beside."""
    lengths = [len(piece) for piece in task.demonstrations]
    fitting = [length for length in lengths if length <= limit]
    if len(fitting) < len(lengths):
        report.note("demonstrations longer than the limit, left out", f"{task.name} ({len(lengths) - len(fitting)})")
    shown = fitting[: demonstrated.max_demonstrations]
    dropped = (prompts > demonstrated.input_room() - sum(shown)) & bool(shown)
    _note_rows(report, "prompt that not all demonstrations fit in front of", task, dropped)


def _note_rows(report: DataReport, kind: str, task: TokenizedTask, rows: NDArray[np.bool_]) -> None:
    if count := int(rows.sum()):
        report.note(kind, f"{task.name} ({count} of {task.count})")

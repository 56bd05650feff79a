"""The instructions of a task set, as controls read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.tokenized import TokenizedTask


class ControlInstructions:
    """Instructions of a data module in the phrasing that evaluation uses, without examples."""

    def __init__(self, data: InstructionDataModule) -> None:
        """Takes a data module that is set up."""
        self.data = data

    def of_split(self, split: Literal["train", "test"]) -> Iterator[TaskBatch]:
        """Yields batches of all tasks of a split, in their order."""
        tasks = self.data.tasks[split].tasks if split in self.data.tasks else []
        for start in range(0, len(tasks), self.data.eval_batch_size):
            yield self._batch(tasks[start : start + self.data.eval_batch_size])

    def wrong(self, tasks: Sequence[str]) -> Tokens:
        """Returns the instructions that `exchange` gives the test tasks `tasks` [T, I]."""
        return self._batch([self._exchanged[name] for name in tasks]).instruction

    @cached_property
    def _exchanged(self) -> dict[str, TokenizedTask]:
        return {task.name: task for task in self.data.exchanged_tasks.tasks}

    def _batch(self, tasks: Sequence[TokenizedTask]) -> TaskBatch:
        return self.data.collator.instructions([(task, None) for task in tasks])

"""What evaluation reads of an instruction data module: test tasks as they are, changed, or in passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

from data_modules.instruction import HELD_OUT_INSTANCES, InstructionDataModule
from data_modules.loader import ResumableLoader
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.paraphrase import paraphrase
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.splits import demonstrations_as_instances
from tagi_lightning.data.task import DataKind, Task
from tagi_lightning.data.tokenized import TokenizedTask, TokenizedTasks


class EvaluationData:
    """The loaders of a data module that evaluation asks for."""

    def __init__(self, data: InstructionDataModule) -> None:
        """Takes a data module that is set up."""
        self.data = data

    def tasks(self, kind: DataKind) -> Sequence[Task]:
        """Returns the tasks that a kind's instances are of, with their texts."""
        if kind == "held_out":
            return self.data.read(DataReport(str(self.data.folder)), HELD_OUT_INSTANCES).train
        return self.data.splits.test

    def passes(self, kind: DataKind) -> list[ResumableLoader]:
        """Returns the batches of a kind, pass by pass.

        Raises:
            ValueError: If there is none.
        """
        if kind == "each_demonstration":
            return self.members()
        if kind == "few_shot":
            return [instances for _, instances in self.few_shot().values()]
        return [self.loader(kind)]

    def loader(self, kind: DataKind) -> ResumableLoader:
        """Returns the batches of a kind that is read in one pass.

        Raises:
            ValueError: If there is no instance.
        """
        loaders = {
            "test": self.data.test_dataloader,
            "wrong_instruction": self.wrong_instruction,
            "paraphrased": self.paraphrased,
            "held_out": self.data.held_out_dataloader,
        }
        if not isinstance(loader := loaders[kind](), ResumableLoader):
            raise ValueError("training leaves no instances to score the teachers on; lower data.max_train_instances")
        return loader

    def wrong_instruction(self) -> ResumableLoader:
        """Returns the test tasks' instances, each task under another test task's instruction."""
        return self.data.evaluation_loader(self.exchanged_tasks)

    def paraphrased(self) -> ResumableLoader:
        """Returns the test tasks' instances, each task under its own instruction in other words."""
        rewritten = [paraphrase(task) for task in self.data.splits.test]
        return self.data.evaluation_loader(self.data.tokenized(rewritten))

    def members(self) -> list[ResumableLoader]:
        """Returns the test tasks' instances once for each demonstration, which stands alone in its batches.

        There are as many as `demonstrations` asks for and every test task has within `max_input_length`.

        Raises:
            ValueError: If there is none.
        """
        data = self.data
        least = min(len(data.assembler.fitting(task.demonstrations)) for task in data.tasks["test"].tasks)
        if not (members := min(data.demonstrations, least)):
            raise ValueError(
                f"an ensemble reads one demonstration at a time; data.demonstrations={data.demonstrations} are asked "
                f"for and some test task has {least} that fit: ask for some, and in P3 draw them with data.shots"
            )
        return [data.evaluation_loader(data.tasks["test"], member) for member in range(members)]

    def few_shot(self) -> dict[str, tuple[ResumableLoader, ResumableLoader]]:
        """Returns, for each category of the test tasks, batches of its demonstrations to train on, and its instances.

        Raises:
            ValueError: If a test task has no demonstration.
        """
        data, found = self.data, defaultdict[str, list[Task]](list)
        for task in data.splits.test:
            found[task.category].append(task)
        loaders = {}
        for category, tasks in found.items():
            shots = data.tokenized([demonstrations_as_instances(task) for task in tasks])
            loaders[category] = data.training_loader(shots), data.evaluation_loader(data.tokenized(tasks))
        return loaders

    @cached_property
    def exchanged_tasks(self) -> TokenizedTasks:
        """The test tasks, tokenised, each with another one's instruction."""
        return self.data.tokenized(self.data.exchange())


class ControlInstructions:
    """Instructions of a data module in the phrasing that evaluation uses, without examples."""

    def __init__(self, evaluation: EvaluationData) -> None:
        """Takes what evaluation reads."""
        self.evaluation, self.data = evaluation, evaluation.data

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
        return {task.name: task for task in self.evaluation.exchanged_tasks.tasks}

    def _batch(self, tasks: Sequence[TokenizedTask]) -> TaskBatch:
        return self.data.collator.instructions([(task, None) for task in tasks])

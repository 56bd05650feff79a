"""From examples to padded batches."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from tagi_lightning.data.batch import TaskBatch, Tokens, pad_labels
from tagi_lightning.data.prompts import PromptAssembler
from tagi_lightning.data.tokenized import Example, ExampleIndex, TokenizedTask, TokenizedTasks


def draw(count: int, *key: object) -> int:
    """Returns a number below `count` that depends on `key` alone."""
    if count == 1:
        return 0
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % count


@dataclass(frozen=True)
class TaskCollator:
    """Builds a `TaskBatch` from examples grouped by task.

    In training a phrasing is drawn per (seed, epoch, task), a reference per (seed, epoch, id), and demonstrations per
    (seed, epoch, task, id of the task's first example); examples without an epoch get the first phrasing, the first
    reference and the first demonstrations, and their answer choices.

    Attributes:
        assembler: Joins pieces.
        categories: The training categories, sorted; a category's index is its place here.
        pad_id: Id of padding.
        seed: Decides the draws together with the epoch.
        with_prompt: Whether to fill the concatenated prompt, (a;b).
        bare_prompt: Whether that is b alone, without the instruction.
        demonstrated: Joins demonstrations and prompts, and tells how many of each task to fill in; None for none.
        member: Fills in the one of this place alone, for one member of an ensemble.
    """

    assembler: PromptAssembler
    categories: tuple[str, ...]
    pad_id: int
    seed: int = 0
    with_prompt: bool = False
    bare_prompt: bool = False
    demonstrated: PromptAssembler | None = None
    member: int | None = None

    def __call__(self, examples: Sequence[Example]) -> TaskBatch:
        """Returns the batch of B `examples` of T tasks, which must come task by task."""
        order = list(dict.fromkeys(example.index.task for example in examples))
        rows = [order.index(example.index.task) for example in examples]
        if rows != sorted(rows):
            raise ValueError("examples of a batch must be grouped by task")
        first = [examples[rows.index(row)] for row in range(len(order))]
        definitions = [self._definition(example.task, example.index.epoch) for example in first]
        shown = [self._shown(example) for example in first]
        prompts = self._prompts(examples, [definitions[row] for row in rows]) if self.with_prompt else None
        return TaskBatch(
            instruction=self._instructions([example.task for example in first], definitions),
            input=self._pad([self.assembler.input(example.text_ids) for example in examples]),
            labels=pad_labels([self._target(example) for example in examples]),
            task_index=torch.tensor(rows, dtype=torch.long),
            category=self._categories([example.task for example in first]),
            prompt=self._pad(prompts) if prompts is not None else None,
            **self._demonstrated(shown, examples, rows, definitions),
            tasks=tuple(example.task.name for example in first),
            ids=tuple(example.id for example in examples),
            references=tuple(example.references for example in examples),
            inputs=tuple(example.text for example in examples if example.index.epoch is None),
            **self._ranked([example for example in examples if example.index.epoch is None]),
        )

    def instructions(self, items: Sequence[tuple[TokenizedTask, int | None]]) -> TaskBatch:
        """Returns a batch of T instructions and no examples, B = 0.

        Args:
            items: Tasks with the epoch; each epoch shows the next phrasing, None the first.
        """
        tasks = [task for task, _ in items]
        definitions = [self._next_phrasing(task, epoch) for task, epoch in items]
        return TaskBatch(
            instruction=self._instructions(tasks, definitions),
            input=self._pad([]),
            labels=pad_labels([]),
            task_index=torch.empty(0, dtype=torch.long),
            category=self._categories(tasks),
            tasks=tuple(task.name for task in tasks),
        )

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tokens:
        return Tokens.pad(rows, self.pad_id)

    def _definition(self, task: TokenizedTask, epoch: int | None) -> list[int]:
        drawn = 0 if epoch is None else draw(len(task.definitions), self.seed, epoch, task.name)
        return task.definitions[drawn]

    def _next_phrasing(self, task: TokenizedTask, epoch: int | None) -> list[int]:
        count = len(task.definitions)
        return task.definitions[0 if epoch is None else (draw(count, self.seed, task.name) + epoch) % count]

    def _target(self, example: Example) -> list[int]:
        index, references = example.index, example.reference_ids
        key = (self.seed, index.epoch, example.task.name, example.id)
        return self.assembler.target(references[0 if index.epoch is None else draw(len(references), *key)])

    def _instructions(self, tasks: Sequence[TokenizedTask], definitions: Sequence[list[int]]) -> Tokens:
        pairs = zip(tasks, definitions, strict=True)
        return self._pad([self.assembler.instruction(definition, task.demonstrations) for task, definition in pairs])

    def _prompts(self, examples: Sequence[Example], definitions: Sequence[list[int]]) -> list[list[int]]:
        return [self._prompt(example, definition) for example, definition in zip(examples, definitions, strict=True)]

    def _prompt(self, example: Example, definition: list[int]) -> list[int]:
        if self.bare_prompt:
            return self.assembler.input(example.text_ids)
        if example.prompt_ids:
            return self.assembler.input(example.prompt_ids)
        return self.assembler.prompt(definition, example.task.demonstrations, example.text_ids)

    def _shown(self, example: Example) -> list[list[int]]:
        """Returns the demonstrations that a task shows in a batch where `example` is its first."""
        if self.demonstrated is None:
            return []
        task, epoch = example.task, example.index.epoch
        shown = self.assembler.fitting(task.demonstrations)
        if epoch is not None:
            random.Random(f"{self.seed}/{epoch}/{task.name}/{example.id}/demonstrations").shuffle(shown)
        shown = shown[: self.demonstrated.max_demonstrations]
        return shown if self.member is None else shown[self.member : self.member + 1]

    def _demonstrated(
        self,
        shown: Sequence[Sequence[list[int]]],
        examples: Sequence[Example],
        rows: Sequence[int],
        definitions: Sequence[list[int]],
    ) -> dict[str, Any]:
        """Returns the fields of a batch that hold demonstrations, none where none are asked for.

        Args:
            shown: Demonstrations of each task.
            examples: The examples.
            rows: Task of each example.
            definitions: Phrasing of each task.
        """
        if self.demonstrated is None:
            return {}
        alone = [[self.assembler.instruction(piece, ()) for piece in pieces] for pieces in shown]
        fields: dict[str, Any] = {"demonstrations": Tokens.pad_segments(alone, self.pad_id)}
        if self.with_prompt:
            room = self.assembler.input_room()
            prompts = [
                self.demonstrated.demonstrated(shown[row], example.prompt_ids[:room])
                if example.prompt_ids
                else self.demonstrated.prompt(definitions[row], shown[row], example.text_ids)
                for example, row in zip(examples, rows, strict=True)
            ]
            fields["demonstrated_prompt"] = self._pad(prompts)
        return fields

    def _ranked(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns the fields of a batch that hold answer choices, none where no example has any."""
        counts = [len(example.choices) for example in examples]
        if not any(counts):
            return {}
        return {
            "choices": self._pad([self.assembler.target(ids) for example in examples for ids in example.choice_ids]),
            "choice_index": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
            "gold": torch.tensor([example.gold for example in examples], dtype=torch.long),
            "choice_texts": tuple(example.choices for example in examples),
        }

    def _categories(self, tasks: Sequence[TokenizedTask]) -> torch.Tensor:
        places = {category: place for place, category in enumerate(self.categories)}
        return torch.tensor([places.get(task.category, -1) for task in tasks], dtype=torch.long)


class InstructionDataset(Dataset[tuple[TokenizedTask, int]]):
    """Tasks without their instances, for a sampler that yields `ExampleIndex`."""

    def __init__(self, tasks: TokenizedTasks) -> None:
        self.tasks = tasks.tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: ExampleIndex) -> tuple[TokenizedTask, int]:
        return self.tasks[index.task], index.epoch or 0

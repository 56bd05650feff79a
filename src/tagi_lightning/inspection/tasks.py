"""The tasks that are looked at: which ones, in which order, and as the model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.data.collate import TaskCollator
from tagi_lightning.data.tokenized import Example, ExampleIndex, TokenizedTasks

TASKS_AT_ONCE = 16
"""Tasks of a batch."""

Item = TypeVar("Item")


class InspectedTask(NamedTuple):
    """What pictures tell of a task; tasks sort by these, in this order.

    Attributes:
        category: Its category.
        split: train, validation or test.
        name: Its name.
    """

    category: str
    split: str
    name: str


@dataclass(frozen=True)
class InspectedTasks:
    """Tasks in the order of the pictures, by category.

    Attributes:
        tasks: What is told of each of the T tasks.
        batches: The same tasks, some at a time, each with its first examples.
    """

    tasks: tuple[InspectedTask, ...]
    batches: tuple[TaskBatch, ...]

    def __len__(self) -> int:
        return len(self.tasks)


def evenly_spaced(items: Sequence[Item], count: int | None) -> list[Item]:
    """Returns `count` of the items, evenly spread over their order; all where there are no more, or for None."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


def collate_tasks(
    splits: Mapping[str, TokenizedTasks], collator: TaskCollator, instances: int, count: int | None = None
) -> InspectedTasks:
    """Makes batches of tasks, spread evenly over the categories.

    Args:
        splits: Tasks by split; one whose instances stand in several is told under the first.
        collator: Joins the pieces of instructions and inputs.
        instances: Examples of each task, at most; at least 1.
        count: Tasks at most; None for all.
    """
    found: dict[str, tuple[InspectedTask, TokenizedTasks, int]] = {}
    for split, tokenized in splits.items():
        for place, task in enumerate(tokenized.tasks):
            found.setdefault(task.name, (InspectedTask(task.category, split, task.name), tokenized, place))
    chosen = evenly_spaced(sorted(found.values(), key=lambda each: each[0]), count)
    examples: list[list[Example]] = []
    for row, (_, tokenized, place) in enumerate(chosen):
        wanted = range(min(instances, tokenized.tasks[place].count))
        read = tokenized.__getitems__([ExampleIndex(place, instance, None) for instance in wanted])
        # places in different splits may be equal, and a batch tells tasks apart by them
        examples.append([replace(each, index=each.index._replace(task=row)) for each in read])
    batches = [
        collator([example for some in examples[start : start + TASKS_AT_ONCE] for example in some])
        for start in range(0, len(examples), TASKS_AT_ONCE)
    ]
    return InspectedTasks(tuple(task for task, _, _ in chosen), tuple(batches))

"""Which tasks and instances are for training, for validation and for testing."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.subsets import select_categories
from tagi_lightning.data.task import Instance, Task, TaskSplits

ValSplit = Literal["none", "categories", "tasks", "instances"]
"""What validation holds out: nothing, whole categories, whole tasks, or a part of each task's instances."""


def training_instances(task: Task, seed: int, first: int, count: int | None) -> Task:
    """Returns the task with the instances of ranks first to first + count - 1 of a permutation by (seed, task).

    Args:
        task: A training task with all its instances.
        seed: Seed of the experiment.
        first: First rank, from 0.
        count: Number of instances; None takes all that follow.
    """
    order = list(task.instances)
    random.Random(f"{seed}/{task.name}").shuffle(order)
    return replace(task, instances=tuple(order[first:] if count is None else order[first : first + count]))


def check_counts(max_train_instances: int | None, max_test_instances: int | None, held_out_instances: int = 0) -> None:
    """Refuses numbers of instances that would choose others than the first ones, or none.

    Raises:
        ValueError: If one is too small.
    """
    check_range({"max_train_instances": max_train_instances}, least=1)
    check_range({"max_test_instances": max_test_instances}, least=1, otherwise="null for all")
    check_range({"held_out_instances": held_out_instances}, least=0)


def held_out_count(total: int, share: float) -> int:
    """Returns how many of `total` a share holds out: at least one, but never the last."""
    return min(max(1, round(share * total)), total - 1)


def hold_out(names: Collection[str], share: float, key: str) -> frozenset[str]:
    """Returns the names that a share holds out, a function of the set of names and of `key` alone."""
    return frozenset(random.Random(key).sample(sorted(names), held_out_count(len(names), share)))


def split_validation(
    tasks: Sequence[Task], how: ValSplit, share: float, seed: int
) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Splits training tasks into those for training and those for validation, both in the given order.

    Args:
        tasks: The training tasks.
        how: What is held out; "instances" takes the last ones of each task.
        share: Share of the categories, tasks or instances held out; at least one is.
        seed: Seed of the experiment.

    Raises:
        DataError: If there is but one category or task to hold out from.
        ValueError: If `how` or `share` is not allowed.
    """
    if how == "none" or not tasks:
        return tuple(tasks), ()
    check_range({"val_share": share}, above=0, below=1)
    if how == "instances":
        return _split_instances(tasks, share)
    if how not in ("categories", "tasks"):
        raise ValueError(f"val_split={how!r} is unknown, allowed: none, categories, tasks, instances")
    units = {task.name: task.category if how == "categories" else task.name for task in tasks}
    names = set(units.values())
    if len(names) < 2:
        raise DataError(
            f"val_split={how} needs two training {how} or more, there is {len(names)}: use another val_split"
        )
    held = hold_out(names, share, f"{seed}/validation/{how}")
    train = tuple(task for task in tasks if units[task.name] not in held)
    return train, tuple(task for task in tasks if units[task.name] in held)


def _split_instances(tasks: Sequence[Task], share: float) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    train, validation = [], []
    for task in tasks:
        cut = len(task.instances) - held_out_count(len(task.instances), share)
        train.append(replace(task, instances=task.instances[:cut]))
        if cut < len(task.instances):
            validation.append(replace(task, instances=task.instances[cut:]))
    return tuple(train), tuple(validation)


def arrange(
    train: Sequence[Task],
    test: Sequence[Task],
    report: DataReport,
    *,
    seed: int,
    max_train_instances: int | None,
    max_test_instances: int | None,
    held_out_instances: int,
    categories: int | Sequence[str] | None,
    val_split: ValSplit,
    val_share: float,
    advice: str,
) -> TaskSplits:
    """Makes the splits of an experiment from whole tasks: category subset, instances, validation.

    Args:
        train: Training tasks with all their instances.
        test: Test tasks with all their instances.
        report: Holds what was found so far; its errors are raised here, before anything is chosen.
        seed: Seed of the permutation of training instances and of the validation split.
        max_train_instances: Instances of a training task, the first of a permutation by (seed, task).
        max_test_instances: Instances of a test task, the first in their order.
        held_out_instances: If positive, training tasks get that many instances *after* their training ones instead.
        categories: Size of one of the paper's subsets or names; None takes all.
        val_split: What validation holds out of the training tasks.
        val_share: Share that validation holds out.
        advice: Last line of an error message.

    Raises:
        DataError: If `report` holds errors.
        ValueError: If a number of instances is out of its range.
    """
    check_counts(max_train_instances, max_test_instances, held_out_instances)
    if categories is not None:
        wanted = select_categories(categories, {task.category for task in train}, report)
        kept = [task for task in train if task.category in wanted]
        if train and not kept:
            report.error("no training task in the categories", str(categories))
        train = kept
    report.raise_if_errors(advice)
    if held_out_instances:
        if max_train_instances is None:
            raise ValueError("held_out_instances needs max_train_instances: without it all instances are for training")
        val_split = "none" if val_split == "instances" else val_split
        shuffled = [training_instances(task, seed, max_train_instances, held_out_instances) for task in train]
    else:
        shuffled = [training_instances(task, seed, 0, max_train_instances) for task in train]
    training, validation = split_validation(shuffled, val_split, val_share, seed)
    for task in (*training, *validation):
        if not task.instances:
            report.note("task without held-out instances, left out", task.name)
    return TaskSplits(
        train=tuple(task for task in training if task.instances),
        validation=tuple(task for task in validation if task.instances),
        test=tuple(replace(task, instances=task.instances[:max_test_instances]) for task in test),
    )


def demonstrations_as_instances(task: Task) -> Task:
    """Returns the task with its demonstrations, complete prompts in P3, as its instances, to be trained on.

    None are left to be shown: a prompt with them would hold the answer that it asks for.

    Raises:
        DataError: If it has none.
    """
    if not task.demonstrations:
        raise DataError(f"task {task.name} has no demonstration to train on; draw some: data.shots")
    complete = bool(task.template)
    shots = tuple(
        Instance(f"{task.name}/shot/{place}", each.input, (each.output,), prompt=each.input if complete else "")
        for place, each in enumerate(task.demonstrations)
    )
    return replace(task, instances=shots, demonstrations=())


def exchange_instructions(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Gives every task the definitions and demonstrations of another one, drawn by seed; instances stay.

    Raises:
        DataError: If there are fewer than two tasks.
    """
    if len(tasks) < 2:
        raise DataError(f"another task's instruction needs at least 2 test tasks, there are {len(tasks)}")
    order = list(range(len(tasks)))
    random.Random(f"{seed}/exchange").shuffle(order)
    giver = dict(zip(order, order[1:] + order[:1], strict=True))
    return [
        replace(task, definitions=tasks[giver[place]].definitions, demonstrations=tasks[giver[place]].demonstrations)
        for place, task in enumerate(tasks)
    ]

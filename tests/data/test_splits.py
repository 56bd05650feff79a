from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagi_lightning.data.report import DataError
from tagi_lightning.data.splits import check_counts, held_out_count, hold_out, split_validation, training_instances
from tagi_lightning.data.task import Instance, Task

SEEDS = st.integers(0, 2**31)


def make_task(name: str, size: int, category: str = "Arithmetic") -> Task:
    instances = tuple(Instance(str(row), f"input {row}", ("answer",)) for row in range(size))
    return Task(name, category, ("Add the numbers.",), (), instances)


def ids(task: Task) -> list[str]:
    return [instance.id for instance in task.instances]


@given(seed=SEEDS, size=st.integers(0, 40), first=st.integers(0, 40), count=st.integers(0, 40))
def test_windows_of_one_permutation_partition_the_instances(seed, size, first, count):
    task = make_task("add", size)
    whole = ids(training_instances(task, seed, 0, None))
    assert sorted(whole) == sorted(ids(task))
    assert ids(training_instances(task, seed, first, count)) == whole[first : first + count]


def test_permutation_is_known_and_depends_on_seed_and_task():
    order = ids(training_instances(make_task("add", 8), 0, 0, None))
    assert order == ["4", "7", "0", "3", "5", "6", "2", "1"]
    assert order != ids(training_instances(make_task("add", 8), 1, 0, None))
    assert order != ids(training_instances(make_task("subtract", 8), 0, 0, None))


@given(total=st.integers(2, 1000), share=st.floats(0.001, 0.999))
def test_held_out_count_leaves_something_on_both_sides(total, share):
    assert 1 <= held_out_count(total, share) <= total - 1
    assert abs(held_out_count(total, share) - share * total) <= 1


@given(names=st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True), seed=SEEDS)
def test_hold_out_ignores_the_order_of_names(names, seed):
    assert hold_out(names, 0.3, str(seed)) == hold_out(names[::-1], 0.3, str(seed)) < set(names)


@given(seed=SEEDS, share=st.floats(0.01, 0.99), how=st.sampled_from(["categories", "tasks"]), number=st.integers(3, 12))
def test_whole_tasks_or_categories_are_held_out(seed, share, how, number):
    tasks = [make_task(f"task{index}", 3, f"category{index % 3}") for index in range(number)]
    train, validation = split_validation(tasks, how, share, seed)
    assert train
    assert validation
    assert sorted([*train, *validation], key=tasks.index) == tasks
    if how == "categories":
        assert not {task.category for task in train} & {task.category for task in validation}
    assert (train, validation) == split_validation(tasks, how, share, seed)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), share=st.floats(0.01, 0.99))
def test_instances_are_held_out_of_each_task(sizes, share):
    tasks = [make_task(f"task{index}", size) for index, size in enumerate(sizes)]
    train, validation = split_validation(tasks, "instances", share, 0)
    held = {task.name: ids(task) for task in validation}
    assert [task.name for task in train] == [task.name for task in tasks]
    for task, kept in zip(tasks, train, strict=True):
        assert kept.instances
        assert ids(kept) + held.get(task.name, []) == ids(task)
        assert (task.name in held) == (len(task.instances) > 1)


def test_no_split_keeps_every_task():
    tasks = (make_task("add", 2), make_task("subtract", 2))
    assert split_validation(tasks, "none", 0.05, 0) == (tasks, ())


@pytest.mark.parametrize(("how", "share"), [("tasks", 0.0), ("instances", 1.0), ("rows", 0.5)])
def test_options_out_of_range_are_told(how, share):
    with pytest.raises(ValueError, match=r"val_share must be above 0 and below 1|val_split=.*none"):
        split_validation([make_task("add", 2), make_task("subtract", 2)], how, share, 0)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((0, None), "max_train_instances must be at least 1, got 0"),
        ((5, -1), "max_test_instances must be at least 1, or null for all, got -1"),
        ((5, None, -50), "held_out_instances must be at least 0, got -50"),
    ],
)
def test_numbers_that_would_cut_from_the_end_are_refused(counts, told):
    with pytest.raises(ValueError, match=told):
        check_counts(*counts)
    check_counts(1, None, 0)


@pytest.mark.parametrize("how", ["tasks", "categories"])
def test_one_task_cannot_be_split(how):
    with pytest.raises(DataError, match=f"needs two training {how} or more"):
        split_validation([make_task("add", 9)], how, 0.5, 0)

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagi_lightning.bench.data import drawn_lengths
from tagi_lightning.data.epochs import share
from tagi_lightning.data.sampler import EvaluationSampler, InstructionSampler, TaskBatchSampler, TaskLengths


def lengths(counts, seed=0):
    generator = np.random.default_rng(seed)
    return [
        TaskLengths(
            f"task{number}",
            int(generator.integers(5, 400)),
            generator.integers(1, 300, count),
            generator.integers(1, 60, count),
        )
        for number, count in enumerate(counts)
    ]


def training(counts=(40, 37, 12, 1, 25, 8, 30), tasks=3, instances=4, seed=0, **options):
    return TaskBatchSampler(lengths(counts), tasks, instances, seed, **options)


def seen(batches):
    return Counter((index.task, index.instance) for batch in batches for index in batch)


COUNTS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_every_instance_once_an_epoch_grouped_by_task(counts, tasks, instances, pool, epoch):
    sampler = training(counts, tasks, instances, pool_batches=pool)
    batches = sampler.plan(epoch)
    assert seen(batches) == Counter((t, i) for t, count in enumerate(counts) for i in range(count))
    assert len(batches) == len(sampler)
    for batch in batches:
        order = [index.task for index in batch]
        assert order == sorted(order)
        assert len(batch) <= tasks * instances
        assert {index.epoch for index in batch} == {epoch}


def test_full_batches_are_distinct_tasks_of_equally_many_instances():
    batches = training([40] * 12, tasks=4).plan(0)
    rectangular = [batch for batch in batches if sorted(Counter(i.task for i in batch).values()) == [4] * 4]
    assert len(batches) == 30
    assert len(rectangular) >= 28


def test_order_is_a_function_of_seed_and_epoch():
    first, again = training(), training()
    assert first.plan(3) == again.plan(3)
    places = [[tuple(index[:2]) for batch in sampler.plan(e) for index in batch] for sampler, e in
              [(first, 0), (first, 1), (training(seed=1), 0)]]  # fmt: skip
    assert places[0] != places[1]
    assert places[0] != places[2]


def test_order_of_a_task_does_not_depend_on_its_place():
    tasks = lengths([16, 16])
    turned = TaskBatchSampler(tasks[::-1], 1, 4, 0)
    groups = {
        tuple(i.instance for i in batch) for batch in TaskBatchSampler(tasks, 1, 4, 0).plan(0) if batch[0].task == 0
    }
    assert groups == {tuple(i.instance for i in batch) for batch in turned.plan(0) if batch[0].task == 1}


def test_groups_differ_between_epochs():
    sampler = training([100], tasks=1)
    groups = [{frozenset(i.instance for i in batch) for batch in sampler.plan(epoch)} for epoch in (0, 1)]
    assert groups[0] != groups[1]


def test_seek_starts_once_at_a_position_and_then_at_the_first():
    sampler = training()
    sampler.seek(2, 5)
    sampler.set_epoch(2)
    assert list(sampler) == sampler.plan(2)[5:]
    assert list(sampler) == sampler.plan(2)
    sampler.seek(2, 5)
    sampler.set_epoch(3)
    assert list(sampler) == sampler.plan(3)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_global_batches_are_the_same_whatever_the_number_of_devices(world):
    whole = training([40] * 12, tasks=4).plan(1)
    ranks = [training([40] * 12, tasks=4, rank=rank, world_size=world) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(1)
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert list(chain(*parts)) == batch


@given(st.integers(1, 40), st.integers(1, 9))
def test_shares_are_never_empty_and_partition_the_batch(size, world):
    batch = list(range(size))
    parts = [share(batch, rank, world) for rank in range(world)]
    assert all(parts)
    assert set(chain(*parts)) == set(batch)
    if size >= world:
        assert list(chain(*parts)) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def instructions(tasks, batch):
    return [tasks[number].instruction for number in {index.task for index in batch}]


def inputs(tasks, batch):
    return [tasks[index.task].inputs[index.instance] for index in batch]


def targets(tasks, batch):
    return [tasks[index.task].targets[index.instance] for index in batch]


def padding(tasks, batches, rows):
    lengths = [rows(tasks, batch) for batch in batches]
    return 1 - sum(map(sum, lengths)) / sum(max(each) * len(each) for each in lengths)


@pytest.mark.parametrize(("rows", "bound"), [(instructions, 0.7), (inputs, 0.35), (targets, 0.9)])
def test_similar_lengths_come_together(rows, bound):
    tasks = drawn_lengths(40, 52, "def")
    planned = TaskBatchSampler(tasks, 4, 4, seed=0).plan(0)
    groups = [batch[start : start + 4] for batch in planned for start in range(0, 16, 4)]
    order = np.random.default_rng(0).permutation(len(groups))
    at_random = [list(chain(*(groups[place] for place in four))) for four in order.reshape(-1, 4)]
    assert padding(tasks, planned, rows) < bound * padding(tasks, at_random, rows)


def test_a_larger_pool_pads_less():
    shares = []
    for pool in (1, 10, 100):
        sampler = training([52] * 30, tasks=4, pool_batches=pool)
        planned = sampler.plan(0)
        shares.append(padding(sampler.tasks, planned, instructions) + padding(sampler.tasks, planned, targets))
    assert shares == sorted(shares, reverse=True)


def test_a_batch_does_not_tell_the_next():
    sampler = training([52] * 60, tasks=4)
    planned = sampler.plan(0)
    means = [np.mean(inputs(sampler.tasks, batch)) for batch in planned]
    # 780 batches: the correlation of independent ones is 0 with a deviation of 0.036
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.12
    shared = [len({i.task for i in before} & {i.task for i in after}) for before, after in pairwise(planned)]
    assert np.mean(shared) == pytest.approx(4 * 4 / 60, rel=0.2)


def partners(batches):
    met = [{index.task for index in batch} for batch in batches]
    return {(one, other) for tasks in met for one in tasks for other in tasks if one != other}


def test_tasks_meet_others_from_epoch_to_epoch():
    sampler = training([40] * 60, tasks=4)
    epochs = [partners(sampler.plan(epoch)) for epoch in range(6)]
    each = np.mean([len(pairs) for pairs in epochs]) / 60
    together = len(set().union(*epochs)) / 60
    assert each > 10
    assert together > 1.5 * each


@given(COUNTS, st.integers(1, 12))
def test_evaluation_keeps_tasks_together_longest_first(counts, size):
    tasks = lengths(counts)
    sampler = EvaluationSampler(tasks, size)
    assert seen(sampler) == Counter((t, i) for t, count in enumerate(counts) for i in range(count))
    assert len(list(sampler)) == len(sampler)
    flat = [index for batch in sampler.plan(0) for index in batch]
    assert [index.task for index in flat] == sorted(index.task for index in flat)
    assert all(index.epoch is None for index in flat)
    for before, after in pairwise(flat):
        if before.task == after.task:
            assert tasks[before.task].inputs[before.instance] >= tasks[after.task].inputs[after.instance]
    for batch in sampler.plan(0):
        assert len(batch) <= size
        held = Counter(index.task for index in batch)
        assert len(held) == 1 or all(count == counts[task] for task, count in held.items())
    for task, count in enumerate(counts):
        own = [len(batch) for batch in sampler.plan(0) if {index.task for index in batch} == {task}]
        if count > size:
            assert own == [count % size or size] + [size] * (len(own) - 1)


def test_instruction_batches_hold_each_task_once():
    sampler = InstructionSampler(10, 4, seed=0)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(sampler) == 3
    assert sorted(index.task for batch in batches for index in batch) == list(range(10))
    sampler.set_epoch(1)
    assert [[i.task for i in batch] for batch in sampler] != [[i.task for i in batch] for batch in batches]

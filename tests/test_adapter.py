import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagi_lightning.adapter import TaskAdapter, is_grouped, join
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig


@pytest.fixture
def model(build, trained):
    return trained(build("v1.1"), TagiConfig(LoraConfig(rank=4)))


@given(st.integers(1, 6), st.integers(1, 5))
def test_equal_runs_are_grouped_and_any_other_order_is_not(tasks, run):
    index = torch.arange(tasks).repeat_interleave(run)
    assert is_grouped(index, tasks)
    assert not is_grouped(index, tasks + 1)
    assert is_grouped(index[:-1], tasks) == (tasks == 1 < run)
    if tasks > 1:
        assert not is_grouped(index.flip(0), tasks)


def test_no_examples_are_not_grouped():
    assert not is_grouped(torch.empty(0, dtype=torch.long), 2)


@torch.no_grad()
@pytest.mark.parametrize("run", [1, 3])
def test_grouped_and_ungrouped_examples_get_the_same_logits(model, tokens, run, distance):
    instructions, count = tokens([5, 8, 3]), 3 * run
    inputs, labels = tokens([4, 6, 5] * run), tokens([3, 2, 4] * run, seed=1).ids
    index = torch.arange(3).repeat_interleave(run)
    adapter = model.adapt(instructions)
    grouped = model(inputs, labels, adapter, index)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert not is_grouped(index[order], 3)
    mixed = model(inputs.map(lambda tensor: tensor[order]), labels[order], adapter, index[order])
    assert distance(mixed, grouped[order]) < 1e-5


def test_grouped_and_ungrouped_examples_give_the_same_gradients(model, tokens, distance):
    instructions, index = tokens([5, 8, 3]), torch.tensor([0, 0, 1, 1, 2, 2])
    inputs, labels = tokens([4, 6, 5, 4, 6, 5]), tokens([3] * 6, seed=1).ids
    parameters = list(model.trained_parameters().values())
    found = []
    for order in (torch.arange(6), torch.tensor([5, 0, 3, 2, 4, 1])):
        rows = inputs.map(lambda tensor, order=order: tensor[order])
        logits = model(rows, labels[order], model.adapt(instructions), index[order])
        found.append(torch.autograd.grad(logits.square().mean(), parameters))
    for grouped, mixed in zip(*found, strict=True):
        assert distance(mixed, grouped) < 1e-4


def test_adapters_taken_apart_and_joined_are_the_same(model, tokens):
    prepared = model.prepare(tokens([5, 8, 3]))
    again = join([prepared.select(row) for row in range(3)])
    for found, expected in zip(again.tensors(), prepared.tensors(), strict=True):
        assert found.shape == expected.shape
    for row, length in enumerate([5, 8, 3]):
        alone = prepared.select(row)
        assert alone.num_tasks == 1
        assert alone.memory.states.shape[1] == length
        assert alone.memory.keys_values[0][0].shape[2] == length
        assert torch.equal(again.memory.states[row, :length], prepared.memory.states[row, :length])
        assert torch.equal(again.fusion.keys[1][row, :, :length], prepared.fusion.keys[1][row, :, :length])


def test_one_tasks_adapter_holds_its_own_bytes_only(model, tokens):
    prepared = model.prepare(tokens([5, 5]))
    assert prepared.select(0).num_bytes * 2 == prepared.num_bytes


def test_several_tasks_need_a_task_index(model, tokens):
    with pytest.raises(ValueError, match="task_index"):
        model.adapt(tokens([5, 8])).route(None)


def test_an_adapter_of_nothing_has_nothing_to_route():
    adapter = TaskAdapter()
    assert adapter.route(None) is adapter

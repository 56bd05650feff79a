from dataclasses import replace

import pytest
import torch

from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.evaluation.controls import Controls, pool_instructions
from tagi_lightning.evaluation.systems import SYSTEMS, SystemRunner, measure_flops
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.model import TagiConfig

LORA = LoraConfig(rank=4)


@pytest.fixture
def model(backbone, trained):
    return trained(backbone)


@pytest.fixture
def bank(backbone):
    bank = LoraBank(backbone.sites(LORA), LORA, ["x", "y"])
    for number, parameter in enumerate(bank.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return bank.requires_grad_(False).eval()


def batch_of(tokens, names, rows):
    """Returns one example with labels for each of `rows` of the named tasks."""
    prompt = tokens([9] * len(rows), seed=3)
    return TaskBatch(
        instruction=tokens([6] * len(names), seed=1),
        input=tokens([5] * len(rows), seed=2),
        labels=tokens([3] * len(rows), seed=4).ids,
        task_index=torch.tensor(rows),
        category=torch.full((len(names),), -1),
        prompt=prompt,
        tasks=tuple(names),
    )


class Given:
    """Instructions as they are given."""

    def __init__(self, train, test, wrong=None):
        self.splits = {"train": train, "test": test}
        self.wrong = lambda tasks: wrong

    def of_split(self, split):
        yield from self.splits[split]


def instruction_batches(tokens, lengths, categories, names, size=2, seed=10):
    """Returns batches of instructions without examples."""
    whole = tokens(lengths, seed=seed)
    none = tokens([], seed=0)
    return [
        TaskBatch(
            whole.map(lambda rows, start=start: rows[start : start + size]),
            none,
            none.ids,
            torch.empty(0, dtype=torch.long),
            torch.tensor(categories[start : start + size]),
            tasks=tuple(names[start : start + size]),
        )
        for start in range(0, len(lengths), size)
    ]


@pytest.fixture
def given(tokens):
    train = instruction_batches(tokens, [6, 8, 5], [1, 0, 1], ["t1", "t2", "t3"])
    return Given(train, train, tokens([7, 7], seed=20))


def updates(lora, row=0):
    return {site: lora.delta(site)[row] for site in lora.a}


def close(found, expected, distance):
    assert found.keys() == expected.keys()
    return max(distance(found[site], expected[site]) for site in found) < 1e-4


def test_the_mean_lora_of_one_training_task_is_that_tasks(model, tokens, distance):
    [batch] = instruction_batches(tokens, [6], [0], ["only"])
    mean = Controls(model, instructions=Given([batch], [])).mean_generated.lora
    with torch.no_grad():
        own = model.adapt(batch.instruction).lora
    assert close(updates(mean.lora), updates(own), distance)
    assert mean.lora.rank == own.rank
    assert mean.kept == pytest.approx(1, abs=1e-5)
    assert mean.agreement == pytest.approx(1, abs=1e-4)
    assert mean.adapters == 1


def test_the_mean_is_over_every_training_task_whatever_the_batches(model, tokens, given, distance):
    lengths, names = [6, 8, 5], ["t1", "t2", "t3"]
    at_once = Given(instruction_batches(tokens, lengths, [1, 0, 1], names, size=3), [])
    one, two = (Controls(model, instructions=each).mean_generated.lora for each in (given, at_once))
    assert one.adapters == two.adapters == 3
    assert close(updates(one.lora), updates(two.lora), distance)


def test_mean_adapter_and_wrong_adapter_keep_fusion_and_memory_of_the_right_instruction(model, tokens, given):
    batch = batch_of(tokens, ["a", "b"], [0, 1])
    controls = Controls(model, instructions=given)
    right, *others = (
        SystemRunner(SYSTEMS[name], model, controls).condition(batch)[1]
        for name in ("tagi", "mean_adapter", "wrong_adapter")
    )
    for other in others:
        assert all(map(torch.equal, right.fusion.keys, other.fusion.keys))
        assert torch.equal(right.memory.states, other.memory.states)
        assert not any(torch.equal(right.lora.b[site], other.lora.b[site]) for site in right.lora.b)
    mean, wrong = others
    assert all(torch.equal(b[0], b[1]) for b in mean.lora.b.values())
    with torch.no_grad():
        expected = model.adapt(given.wrong(batch.tasks)).lora
    assert all(torch.allclose(wrong.lora.b[site], expected.b[site], atol=1e-6) for site in expected.b)


def test_memory_holds_nothing_of_the_lora_that_was_replaced(model, tokens, given):
    batch = batch_of(tokens, ["a", "b"], [0, 1])
    runner = SystemRunner(SYSTEMS["wrong_adapter"], model, Controls(model, instructions=given))
    with torch.no_grad():
        own, wrong = model.adapt(batch.instruction), model.adapt(given.wrong(batch.tasks))
        expected = model(batch.input, batch.labels, replace(own, lora=wrong.lora), batch.task_index)
        own_logits = model(batch.input, batch.labels, own, batch.task_index)
    assert torch.allclose(runner.forward(batch), expected, atol=1e-5)  # float32, sums in another order
    assert not torch.allclose(own_logits, expected, atol=1e-3)


def test_lora_only_is_the_generated_lora_and_nothing_else(model, tokens):
    batch = batch_of(tokens, ["a", "b"], [0, 1])
    whole, alone = (SystemRunner(SYSTEMS[name], model).condition(batch)[1] for name in ("tagi", "lora_only"))
    assert (alone.fusion, alone.memory, alone.prefix) == (None, None, None)
    assert all(torch.equal(whole.lora.b[site], alone.lora.b[site]) for site in whole.lora.b)
    logits = [SystemRunner(SYSTEMS[name], model).forward(batch) for name in ("tagi", "lora_only")]
    assert not torch.equal(*logits)


@pytest.mark.parametrize("writes", ["prefix", "both"])
def test_a_generated_prefix_is_replaced_with_the_lora(backbone, trained, tokens, given, writes):
    model = trained(backbone, TagiConfig(LORA, HypernetworkConfig(writes=writes, prefix_length=3)))
    batch = batch_of(tokens, ["a", "b"], [0, 1])
    controls = Controls(model, instructions=given)
    adapters = {
        name: SystemRunner(SYSTEMS[name], model, controls).condition(batch)[1]
        for name in ("tagi", "mean_adapter", "wrong_adapter")
    }
    for path, keys in adapters["tagi"].prefix.keys.items():
        assert not torch.equal(keys, adapters["mean_adapter"].prefix.keys[path])
        assert not torch.equal(keys, adapters["wrong_adapter"].prefix.keys[path])
        assert torch.equal(*adapters["mean_adapter"].prefix.keys[path])
    with torch.no_grad():
        prefixes = [model.adapt(each.instruction).prefix for each in given.splits["train"]]
    for path, values in adapters["mean_adapter"].prefix.values.items():
        expected = torch.cat([prefix.values[path] for prefix in prefixes]).mean(0)
        assert torch.allclose(values[0], expected, atol=1e-6)


@pytest.mark.parametrize("config", [HypernetworkConfig(generator="constant"), HypernetworkConfig(enabled=False)])
def test_a_model_whose_adapter_no_instruction_changes_has_no_mean(backbone, trained, tokens, given, config):
    model = trained(backbone, TagiConfig(LORA, config))
    with pytest.raises(ValueError, match="leave out mean_adapter and wrong_adapter"):
        _ = Controls(model, instructions=given).mean_generated


def test_the_nearest_teacher_of_a_training_instruction_is_its_own_categorys(model, bank, given):
    nearest = Controls(model, bank, given).nearest
    assert {name: (found.task, found.category) for name, found in nearest.items()} == {
        "t1": ("t1", 1),
        "t2": ("t2", 0),
        "t3": ("t3", 1),
    }
    assert all(found.cosine == pytest.approx(1, abs=1e-5) for found in nearest.values())


def test_similarity_does_not_see_padding(backbone, tokens):
    short, long = tokens([5]), tokens([5, 9])
    padded = long.map(lambda rows: torch.cat([rows[1:], rows[:1]]))
    alone = pool_instructions(backbone, long.map(lambda rows: rows[:1, :5]))
    assert short.ids.shape[1] == 5
    assert torch.allclose(pool_instructions(backbone, padded)[1:], alone, atol=1e-5)


def test_nearest_and_mean_teachers_run_what_they_say(model, bank, tokens, given, merge, distance):
    batch = batch_of(tokens, ["t2", "t3"], [0, 0, 1])
    controls = Controls(model, bank, given)
    found = SystemRunner(SYSTEMS["nearest_teacher"], model, controls).forward(batch)
    expected = SystemRunner(SYSTEMS["teachers"], model, controls).forward(replace(batch, category=torch.tensor([0, 1])))
    assert torch.equal(found, expected)
    mean = SystemRunner(SYSTEMS["mean_teachers"], model, controls).condition(batch)[1].lora
    for site in mean.a:
        both = bank().delta(site).mean(0)
        rest = torch.linalg.svdvals(both)[LORA.rank :].square().sum().sqrt()
        # the nearest adapter of the teachers' rank is off by the singular values it leaves out
        assert torch.linalg.matrix_norm(mean.delta(site)[1] - both) == pytest.approx(rest.item(), rel=1e-3, abs=1e-5)


def test_a_bank_of_one_teacher_is_its_own_mean(backbone, model, tokens, distance):
    bank = LoraBank(backbone.sites(LORA), LORA, ["x"])
    bank.requires_grad_(False)
    for parameter in bank.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert close(updates(Controls(model, bank).mean_taught.lora), updates(bank()), distance)


@pytest.mark.parametrize("name", ["mean_adapter", "nearest_teacher", "mean_teachers"])
def test_what_is_computed_once_is_not_counted_and_is_not_a_fake(model, bank, tokens, given, name):
    batches = [batch_of(tokens, ["t1", "t2"], [0, 1])]
    controls = Controls(model, bank, given)
    first = measure_flops(SYSTEMS[name], model, batches, controls)
    assert measure_flops(SYSTEMS[name], model, batches, controls) == first > 0
    assert torch.isfinite(SystemRunner(SYSTEMS[name], model, controls).forward(batches[0])).all()


def test_what_controls_lack_is_named(model, bank, tokens):
    batch = batch_of(tokens, ["a"], [0])
    with pytest.raises(ValueError, match="instructions of the whole task set"):
        SystemRunner(SYSTEMS["wrong_adapter"], model).forward(batch)
    with pytest.raises(ValueError, match="needs the teachers"):
        SystemRunner(SYSTEMS["mean_teachers"], model).forward(batch)
    nobody = Controls(model, bank, Given([], []))
    with pytest.raises(ValueError, match="no training instruction"):
        SystemRunner(SYSTEMS["mean_adapter"], model, nobody).forward(batch)

from itertools import repeat

import pytest
import torch

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch
from tagi_lightning.stages.base import OptimizerConfig
from tagi_lightning.stages.few_shot import FewShotConfig, fine_tuned


@pytest.fixture
def batch(tokens):
    targets = tokens([3, 2], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    index = torch.tensor([0, 1])
    return TaskBatch(tokens([5, 8]), tokens([4, 6]), labels, index, torch.arange(2), tokens([9, 11], seed=2))


@torch.no_grad()
def score(backbone, batch):
    return backbone(batch.prompt, batch.labels, TaskAdapter(), batch.task_index)


@pytest.mark.parametrize("family", ["narrow", "wide-tied"])
def test_the_backbone_is_another_inside_and_the_very_same_afterwards(build, batch, family):
    backbone, digest = build(family), build(family).digest()
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    before = score(backbone, batch)
    for _ in range(2):
        with fine_tuned(backbone, repeat(batch), FewShotConfig(steps=3)):
            inside = score(backbone, batch)
            assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not torch.equal(inside, before)
        assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())
    assert torch.equal(score(backbone, batch), before)
    assert backbone.digest() == digest


def test_training_is_deterministic_and_learns(build, batch):
    found = []
    for steps in (20, 20, 1):
        backbone = build("narrow")
        with fine_tuned(backbone, repeat(batch), FewShotConfig(steps)):
            logits = score(backbone, batch).log_softmax(-1)
        chosen = batch.labels.clamp(min=0)[..., None]
        found.append((logits.gather(-1, chosen)[..., 0] * (batch.labels >= 0)).sum())
    assert found[0] == found[1] > found[2]


def test_weights_come_back_where_training_fails(build, batch):
    backbone = build("narrow")
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}

    def batches():
        yield batch
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), fine_tuned(backbone, batches(), FewShotConfig(steps=2)):
        pass
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())


def test_it_is_fid_icls_recipe_unless_told_otherwise(build, batch):
    config = FewShotConfig()
    assert (config.steps, config.optimizer.name, config.optimizer.lr) == (300, "adafactor", 3e-4)
    with pytest.raises(ValueError, match=r"few_shot\.steps must be at least 1"):
        FewShotConfig(0)
    with fine_tuned(build("narrow"), repeat(batch), FewShotConfig(1, OptimizerConfig(lr=0.1))):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_trained_in_float32_and_come_back_as_they_were(build, batch, dtype, distance):
    backbone, exact = build("narrow").to(dtype), build("narrow").to(dtype).float()
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    config = FewShotConfig(steps=3)
    with fine_tuned(backbone, repeat(batch), config), fine_tuned(exact, repeat(batch), config):
        assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
        assert distance(score(backbone, batch), score(exact, batch)) < 1e-5
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}

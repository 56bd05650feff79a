"""FiD-ICL and Concat-ICL: demonstrations read apart from one another, or in front of the prompt."""

from dataclasses import replace

import pytest
import torch
from model_folders import load_onto

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.caches.adapters import AdapterCache
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, Tokens
from tagi_lightning.evaluation.controls import Controls
from tagi_lightning.evaluation.systems import SYSTEMS, SystemRunner, measure_flops
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.stages.distill import Distillation
from tagi_lightning.storage.serialization import save_tagi

NOTHING = {"hypernetwork": HypernetworkConfig(enabled=False), "fusion": FusionConfig(enabled=False)}
FID = TagiConfig(**NOTHING, memory_of="demonstrations", reads="prompt", trained_backbone="all")
CONCAT = TagiConfig(**NOTHING, decoder_memory=False, reads="demonstrations", trained_backbone="all")
INDEX = torch.tensor([0, 0, 1, 1])
SHOTS = [[[3, 4, 5, 1], [6, 7, 1], [8, 9, 10, 11, 1]], [[12, 13, 1], [14, 15, 16, 1]]]
"""Demonstrations of two tasks, one of which has fewer."""


@pytest.fixture
def batch(tokens):
    targets = tokens([3, 2, 4, 3], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    shown = Tokens.pad_segments(SHOTS, 0)
    prompts, demonstrated = tokens([9, 11, 12, 10], seed=2), tokens([20, 22, 24, 18], seed=3)
    given = (tokens([5, 8]), tokens([4, 6, 5, 3]), labels, INDEX, torch.arange(2), prompts, shown, demonstrated)
    return TaskBatch(*given, tasks=("a", "b"))


def run(model, batch):
    return model(model.inputs(batch), batch.labels, model.adapt(model.conditions(batch)), batch.task_index)


def shown(*rows):
    return Tokens.pad_segments(rows, 0)


@torch.no_grad()
def test_a_demonstration_does_not_see_the_others(build):
    model = TagiModel(build("narrow"), FID)
    before = model.adapt(shown(SHOTS[0])).memory
    after = model.adapt(shown([SHOTS[0][0], [20, 21, 1], SHOTS[0][2]])).memory
    first, changed, last = before.states.chunk(3, 1)
    assert torch.equal(first, after.states.chunk(3, 1)[0])
    assert torch.equal(last, after.states.chunk(3, 1)[2])
    assert not torch.equal(changed, after.states.chunk(3, 1)[1])


@torch.no_grad()
def test_each_demonstration_is_encoded_as_it_is_alone(build, distance):
    backbone = build("narrow")
    memory = TagiModel(backbone, FID).adapt(shown(*SHOTS)).memory
    assert memory.mask.sum(1).tolist() == [12, 7]
    for row, pieces in enumerate(SHOTS):
        kept = memory.states[row][memory.mask[row].bool()]
        alone = torch.cat([backbone.encode(Tokens.pad([piece], 0))[0] for piece in pieces])
        assert distance(kept, alone) < 1e-5


@torch.no_grad()
def test_another_order_of_demonstrations_only_permutes_the_memory(build, batch, distance):
    model = TagiModel(build("narrow"), FID)
    turned = replace(batch, demonstrations=shown(*(row[::-1] for row in SHOTS)))
    first, second = (model.adapt(model.conditions(each)).memory.states[0].chunk(3) for each in (batch, turned))
    assert all(torch.equal(one, two) for one, two in zip(first, second[::-1], strict=True))
    assert distance(run(model, turned), run(model, batch)) < 1e-5


@torch.no_grad()
def test_demonstrations_are_all_that_the_memory_holds_and_they_matter(build, batch, distance):
    model = TagiModel(build("narrow"), FID)
    found = run(model, batch)
    assert torch.isfinite(found).all()
    assert torch.equal(run(model, replace(batch, instruction=batch.instruction.map(lambda x: x.flip(1)))), found)
    other = replace(batch, demonstrations=shown(SHOTS[0], [[30, 31, 1], [32, 33, 1]]))
    assert torch.equal(run(model, other)[:2], found[:2])
    assert distance(run(model, other)[2:], found[2:]) > 1e-3


def test_the_encoder_learns_from_demonstrations(build, batch):
    model = TagiModel(build("narrow"), replace(FID, reads="input"))
    adapter = model.adapt(model.conditions(batch))
    assert adapter.memory.states.requires_grad
    adapter.memory.states.retain_grad()
    logits = model(model.inputs(batch), batch.labels, adapter, batch.task_index)
    prediction_loss(logits, batch.labels).mean().backward()
    padding = adapter.memory.mask == 0
    assert adapter.memory.states.grad[~padding].abs().sum(-1).min() > 0
    assert adapter.memory.states.grad[padding].abs().max() == 0


@torch.no_grad()
def test_a_cache_of_demonstrations_answers_like_none(build, batch, trained, distance, tmp_path):
    model = trained(build("narrow"), FID)
    expected, cache = run(model, batch), AdapterCache(model)
    for _ in range(2):
        adapter = cache(model.conditions(batch))
        assert distance(model(model.inputs(batch), batch.labels, adapter, INDEX), expected) < 1e-5
    assert (cache.hits, cache.misses, adapter.memory.mask.shape[1]) == (2, 2, 12)
    assert len(model.generate(model.inputs(batch), adapter, INDEX, GenerationConfig(max_new_tokens=3))) == 4
    save_tagi(model, tmp_path / "model")
    loaded = load_onto(tmp_path / "model", build("narrow"))
    assert loaded.config == FID
    assert torch.equal(run(loaded, batch), expected)


@torch.no_grad()
def test_concat_icl_reads_the_demonstrated_prompt_alone(build, build_causal, batch):
    for backbone in (build("narrow"), build_causal("llama")):
        model = TagiModel(backbone, CONCAT)
        assert model.inputs(batch) is batch.demonstrated_prompt
        assert not model.uses_instruction
        assert torch.isfinite(run(model, batch)).all()


def test_operations_grow_with_demonstrations_and_what_is_read(build, batch):
    fid, concat = (TagiModel(build("narrow"), config) for config in (FID, CONCAT))
    fewer = replace(batch, demonstrations=shown(*(row[:1] for row in SHOTS)))
    cost = [measure_flops(SYSTEMS["tagi"], fid, [each]) for each in (fewer, batch)]
    plain = measure_flops(SYSTEMS["concatenated"], concat, [batch])
    assert plain < cost[0] < cost[1]
    assert measure_flops(SYSTEMS["ensemble"], concat, [batch]) > plain
    runner = SystemRunner(SYSTEMS["tagi"], fid.eval(), Controls(fid))
    assert torch.isfinite(runner.forward(batch)).all()


@torch.no_grad()
def test_fid_icl_can_be_the_logits_teacher(build, batch, trained, distance):
    stage = Distillation()
    stage.teacher_model = trained(build("narrow"), FID)
    expected = run(stage.teacher_model, batch)
    assert torch.equal(stage.teacher_logits(batch, None), expected)
    rows = torch.tensor([0, 3])
    assert distance(stage.teacher_logits(batch, None, rows), expected[rows]) < 1e-5
    with pytest.raises(ValueError, match=r"data\.demonstrations=16"):
        stage.teacher_logits(replace(batch, demonstrations=None), None)


def test_what_cannot_be_is_refused(build, build_causal, batch):
    with pytest.raises(ValueError, match=r"no encoder .*memory_of=demonstrations.*reads=demonstrations"):
        TagiModel(build_causal("llama"), FID)
    for wrong in ({"decoder_memory": False}, {"fusion": FusionConfig()}, {"hypernetwork": HypernetworkConfig()}):
        with pytest.raises(ValueError, match="FiD-ICL, whose demonstrations"):
            replace(FID, **wrong)
    fid, concat = (TagiModel(build("narrow"), config) for config in (FID, CONCAT))
    with pytest.raises(ValueError, match=r"memory_of=demonstrations .*data\.demonstrations=16"):
        fid.conditions(replace(batch, demonstrations=None))
    with pytest.raises(ValueError, match=r"reads=demonstrations .*data\.with_prompt=true"):
        concat.inputs(replace(batch, demonstrated_prompt=None))
    frozen = TagiModel(build("narrow"), replace(FID, trained_backbone="none"))
    with pytest.raises(ValueError, match="instruction_cache_mb=0"):
        InstructionStatesCache(frozen, 2**20)

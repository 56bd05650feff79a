"""What defines each system of the paper's tables, as values of one configuration, on both kinds of backbone."""

from dataclasses import replace

import pytest
import torch
from model_folders import load_onto

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.backbones.quantization import quantize_linears
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.serialization import ModelFolderError, load_tagi_weights, read_folder, save_tagi

LORA, NO_FUSION = LoraConfig(rank=2), FusionConfig(enabled=False)
INDEX = torch.tensor([0, 0, 1, 1, 2, 2])
FAMILIES = {"t5": "narrow", "tied t5": "wide-tied", "llama": "llama", "untied llama": "llama-mha"}


def generates(generator="shared", writes="lora", enabled=True):
    return HypernetworkConfig(enabled, generator, writes, prefix_length=3, hidden=8)


def system(hypernetwork, fusion=NO_FUSION, memory=False, reads="input", trained="none"):
    return TagiConfig(LORA, hypernetwork, fusion, memory, reads=reads, trained_backbone=trained)


SYSTEMS = {
    "tk-instruct": system(generates(enabled=False), reads="prompt", trained="all"),
    "tk-instruct-lora": system(generates("constant"), reads="prompt"),
    "tk-instruct-prefix": system(generates("constant", "prefix"), reads="prompt"),
    "multi-task-lora": system(generates("constant")),
    "hypter": system(generates()),
    "hypertuning-prefix": system(generates(writes="prefix")),
    "hint": system(generates(writes="both"), memory=True, trained="all"),
    "tagi": TagiConfig(LORA, generates(), FusionConfig(width=8)),
    "tagi-lora": system(generates()),
    "without-fusion": system(generates(), memory=True),
    "without-hypernetwork": TagiConfig(LORA, generates(enabled=False), FusionConfig(width=8)),
    "tagi-norms": system(generates(), memory=True, trained="norms_embeddings"),
    "tagi-ffn": system(generates(), memory=True, trained="feed_forward"),
}
"""Those with fusion are for encoders alone; `without-fusion` is TAGI on a decoder-only model."""
PROMPTED = ["tk-instruct", "tk-instruct-lora", "tk-instruct-prefix"]
TRAINED = ["tk-instruct", "hint", "tagi-norms", "tagi-ffn"]


@pytest.fixture
def make(build, build_causal):
    """Returns a frozen backbone of a family, always of the same weights."""

    def make_family(family):
        return (build if "t5" in family else build_causal)(FAMILIES[family])

    return make_family


CASES = [
    (family, name)
    for family in ("t5", "llama")
    for name, config in SYSTEMS.items()
    if family == "t5" or not config.fusion.enabled
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    """A kind of backbone, and a system that can stand on it."""
    return request.param


@pytest.fixture
def batch(tokens):
    targets = tokens([3, 2, 4, 3, 2, 4], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    inputs, prompts = tokens([4, 6, 5, 3, 6, 4]), tokens([9, 11, 12, 10, 8, 6], seed=2)
    return TaskBatch(tokens([5, 8, 3]), inputs, labels, INDEX, torch.arange(3), prompts)


def run(model, batch):
    return model(model.inputs(batch), batch.labels, model.adapt(batch.instruction), batch.task_index)


def step(model, batch):
    """Takes one large step on the batch."""
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
    prediction_loss(run(model, batch), batch.labels).mean().backward()
    optimizer.step()


def test_each_system_trains_what_defines_it_and_no_more(case, make, batch):
    family, name = case
    config = SYSTEMS[name]
    backbone, untouched = make(family), make(family)
    torch.manual_seed(0)
    model = TagiModel(backbone, config)
    own = {key.split(".")[0] for key in model.trained_parameters() if not key.startswith("backbone.")}
    assert own == ({"hypernetwork"} if config.hypernetwork.enabled else set()) | (
        {"fusion"} if config.fusion.enabled else set()
    )
    writes = {key.split(".")[1] for key in model.trained_parameters() if key.startswith("hypernetwork.")}
    written = {"lora": {"generator"}, "prefix": {"prefix_generator"}, "both": {"generator", "prefix_generator"}}
    assert writes == (written[config.hypernetwork.writes] if config.hypernetwork.enabled else set())
    adapter = model.adapt(batch.instruction)
    assert (adapter.lora is not None) == config.generates_lora
    assert (adapter.prefix is not None) == (config.hypernetwork.enabled and config.hypernetwork.writes != "lora")
    assert (adapter.fusion is not None, adapter.memory is not None) == (config.fusion.enabled, config.decoder_memory)
    step(model.train(), batch)
    assert all(p.grad is not None for name, p in model.trained_parameters().items() if "backbone." in name)
    moved = {
        f"backbone.{key}"
        for (key, now), before in zip(backbone.named_parameters(), untouched.parameters(), strict=True)
        if not torch.equal(now, before)
    }
    assert moved == {key for key in model.trained_parameters() if key.startswith("backbone.")}
    assert bool(moved) == (name in TRAINED)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_backbone_grow_from_norms_and_embeddings_to_everything(family, make):
    backbone = make(family)
    parts = {part: backbone.part(part) for part in ("none", "norms_embeddings", "feed_forward", "all")}
    assert not parts["none"]
    assert parts["all"].keys() == dict(backbone.named_parameters()).keys()
    small, large = (parts[part].keys() for part in ("norms_embeddings", "feed_forward"))
    assert small < large < parts["all"].keys()
    embeddings = backbone.model.get_input_embeddings().weight
    assert {name for name, p in parts["norms_embeddings"].items() if p.dim() == 2} == {
        name for name, p in backbone.named_parameters() if p is embeddings
    }
    assert all("norm" in name for name, p in parts["norms_embeddings"].items() if p.dim() == 1)
    assert all(".mlp." in name or "DenseReluDense" in name for name in large - small)
    blocks = 4 if "t5" in family else 2
    assert len(large - small) % blocks == 0
    assert len(large - small) >= 2 * blocks


@torch.no_grad()
def test_what_is_read_is_the_input_or_the_concatenated_prompt(case, make, batch):
    family, name = case
    model = TagiModel(make(family), SYSTEMS[name])
    assert model.inputs(batch) is (batch.prompt if name in PROMPTED else batch.input)
    if name in PROMPTED:
        with pytest.raises(ValueError, match=r"reads=prompt .*set data\.with_prompt=true"):
            model.inputs(replace(batch, prompt=None))


@torch.no_grad()
def test_step_0_is_the_backbone_wherever_neither_memory_nor_prefix_is_there(case, make, batch, distance):
    family, name = case
    config = SYSTEMS[name]
    found = run(TagiModel(make(family), config), batch)
    inputs = batch.prompt if name in PROMPTED else batch.input
    expected = make(family)(inputs, batch.labels, TaskAdapter(), INDEX)
    silent = not config.decoder_memory and not (config.hypernetwork.enabled and config.hypernetwork.writes != "lora")
    assert torch.equal(found, expected) if silent else distance(found, expected) > 1e-3


@torch.no_grad()
def test_no_instruction_is_encoded_where_nothing_uses_it(case, make, batch, monkeypatch):
    family, name = case
    backbone = make(family)
    model, calls, read = TagiModel(backbone, SYSTEMS[name]).eval(), [], backbone.read
    monkeypatch.setattr(backbone, "read", lambda *args, **kwargs: calls.append(1) or read(*args, **kwargs))
    run(model, batch)
    adapter = model.prepare(batch.instruction)
    assert bool(calls) == model.uses_instruction == (name not in [*PROMPTED, "multi-task-lora"])
    other = model.prepare(batch.instruction.map(lambda tensor: tensor.flip(0)))
    decode = GenerationConfig(max_new_tokens=3)
    assert model.generate(model.inputs(batch), adapter, INDEX, decode).shape[0] == len(batch)
    if not model.uses_instruction:
        assert all(torch.equal(x, y) for x, y in zip(adapter.tensors(), other.tensors(), strict=True))


def test_each_system_comes_back_from_its_folder_with_every_bit(case, make, trained, batch, tmp_path):
    family, name = case
    model = trained(make(family), SYSTEMS[name])
    save_tagi(model, tmp_path / "model", ("distill",))
    loaded = load_onto(tmp_path / "model", make(family))
    loaded.requires_grad_(False)  # as evaluation does
    assert loaded.config == SYSTEMS[name]
    assert loaded.digest() == model.digest()
    saved = read_folder(tmp_path / "model", "tagi", "")[0]
    assert any(key.startswith("backbone.") for key in saved) == (name in TRAINED)
    with torch.no_grad():
        assert torch.equal(run(loaded.eval(), batch), run(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_backbone_is_still_that_of_its_teachers_and_marks_its_caches(family, make, trained, batch):
    backbone, original = make(family), make(family).digest()
    model = trained(backbone, SYSTEMS["hint"])
    assert backbone.digest() == original
    prepared, before = model.prepare(batch.instruction), model.digest()
    norm = next(p for name, p in model.trained_parameters().items() if name.startswith("backbone.") and p.dim() == 1)
    with torch.no_grad():
        norm += 0.1
    assert model.digest() != before
    with pytest.raises(ValueError, match=r"made by other weights .* call prepare\(\) again"):
        model(batch.input, batch.labels, prepared, INDEX)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hint", "tagi-ffn"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_lora_is_merged_into_frozen_weights_alone(family, name, make, trained, batch, distance):
    model = trained(make(family), SYSTEMS[name])
    adapter, index = model.prepare(batch.instruction).select(0), torch.zeros_like(INDEX)
    expected = model(batch.input, batch.labels, adapter, index)
    with model.merged(adapter) as rest:
        assert (rest.lora is None) == (name == "tagi-ffn")
        assert distance(model(batch.input, batch.labels, rest, index), expected) < 1e-5


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_instruction_carries_gradient_where_the_backbone_trains_and_uses_it(family, make, batch):
    assert TagiModel(make(family), SYSTEMS["tagi-ffn"]).encode_instructions(batch.instruction).states.requires_grad
    frozen = TagiModel(make(family), SYSTEMS["tagi-lora"])
    assert not frozen.encode_instructions(batch.instruction).states.requires_grad
    with pytest.raises(ValueError, match="instruction_cache_mb=0"):
        InstructionStatesCache(TagiModel(make(family), SYSTEMS["tagi-ffn"]), 2**20)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_weights_that_are_stored_in_few_bits_do_not_train(family, make):
    half, int8 = make(family).to(torch.bfloat16), make(family)
    quantize_linears(int8.model)
    for backbone in (half, int8):
        with pytest.raises(ValueError, match=r"trained_backbone=feed_forward .*backbone\.dtype=float32"):
            TagiModel(backbone, SYSTEMS["tagi-ffn"])
        TagiModel(backbone, SYSTEMS["tagi-lora"])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_trained_weights_never_slip_into_a_backbone_that_is_to_stay_frozen(family, make, trained, tmp_path):
    """The other way round is a start: weights that will train begin at the backbone's own."""
    for name in ("tagi-ffn", "without-fusion"):
        save_tagi(trained(make(family), SYSTEMS[name]), tmp_path / name)
    given = {name: read_folder(tmp_path / name, "tagi", "")[0] for name in ("tagi-ffn", "without-fusion")}
    with pytest.raises(ModelFolderError, match=r"trained_backbone.*unexpected backbone\."):
        load_tagi_weights(TagiModel(make(family), SYSTEMS["without-fusion"]), given["tagi-ffn"], "there")
    model = TagiModel(make(family), SYSTEMS["tagi-ffn"])
    load_tagi_weights(model, given["without-fusion"], "there")
    for name, weight in make(family).named_parameters():
        assert torch.equal(dict(model.backbone.named_parameters())[name], weight)

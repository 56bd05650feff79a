"""A generated prefix: keys and values before the own tokens of every self-attention, of both kinds of backbone."""

import math

import pytest
import torch
from transformers.cache_utils import DynamicCache

from tagi_lightning.adapter import TaskAdapter, join
from tagi_lightning.backbones import GenerationConfig, causal_modules
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss, sequence_log_likelihood
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.prefix import PrefixWeights

LORA = LoraConfig(rank=4)
LENGTHS = [4, 6, 5, 3, 6, 4]
ORDERS = {"runs": torch.tensor([0, 0, 1, 1, 2, 2]), "mixed": torch.tensor([2, 0, 1, 1, 0, 2])}
FAMILIES = ["narrow", "wide-tied", "llama", "mistral", "qwen2", "qwen3"]


def config(writes="prefix", generator="shared", memory=False, length=5):
    hypernetwork = HypernetworkConfig(generator=generator, writes=writes, prefix_length=length, hidden=16)
    return TagiConfig(LORA, hypernetwork, FusionConfig(enabled=False), decoder_memory=memory)


@pytest.fixture(params=FAMILIES)
def any_base(request, build, build_causal):
    """One frozen backbone of each family, of its own."""
    return build(request.param) if request.param in ("narrow", "wide-tied") else build_causal(request.param)


@pytest.fixture(params=["narrow", "llama"])
def base(request, build, build_causal):
    return build(request.param) if request.param == "narrow" else build_causal(request.param)


@pytest.fixture
def batch(tokens):
    targets = tokens([3, 2, 4, 3, 2, 4], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    return tokens([5, 8, 3]), tokens(LENGTHS), labels


def draw(backbone, tasks, length, size=1.0, seed=0):
    """Returns random prefixes for all self-attentions."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        {site.name: size * torch.randn(tasks, length, site.in_features, generator=generator) for site in sites}
        for sites in (backbone.prefix_sites, backbone.prefix_sites)
    ]
    return TaskAdapter(prefix=PrefixWeights(*parts))


@torch.no_grad()
def test_a_prefix_of_one_is_what_transformers_reads_from_a_cache_without_positions(
    build_causal, plain_causal, tokens, distance
):
    """llama, its keys shared by two query heads each; the bias -log 1 is 0."""
    backbone = build_causal("llama")
    adapter = draw(backbone, 1, 1)
    rows = tokens([7, 7])
    cache = DynamicCache()
    for layer, site in enumerate(backbone.prefix_sites):
        cache.update(*(x.expand(2, -1, -1, -1) for x in adapter.prefix.heads(site.name, 8)), layer)
    expected = plain_causal(backbone)(rows.ids, past_key_values=cache, position_ids=torch.arange(7)[None]).logits
    labels = rows.ids[:, 3:]
    found = backbone(rows.map(lambda x: x[:, :3]), labels, adapter, torch.tensor([0, 0]))
    assert distance(found, expected[:, 2:6]) < 1e-5


@torch.no_grad()
def test_attention_to_a_prefix_is_one_softmax_with_a_constant_bias_and_no_position(build, tokens, distance):
    backbone = build("narrow")
    prefix = draw(backbone, 2, 3).prefix
    layer = backbone.model.encoder.block[0].layer[0].SelfAttention
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    adapter = TaskAdapter(prefix=prefix).in_runs(True)
    found, bias, _ = layer(x, adapter=adapter, task_index=torch.tensor([0, 1]))
    query, key, value = (getattr(layer, name)(x).unflatten(-1, (4, 4)).transpose(1, 2) for name in "qkv")
    keys, values = (part[layer.path].unflatten(-1, (4, 4)).transpose(1, 2) for part in (prefix.keys, prefix.values))
    scores = torch.cat([query @ keys.transpose(2, 3) - math.log(3), query @ key.transpose(2, 3) + bias], dim=-1)
    expected = scores.softmax(-1) @ torch.cat([values, value], dim=2)
    assert bias.shape == (1, 4, 4, 4)  # shared with the next layers, which know nothing of the prefix
    assert distance(found, layer.o(expected.transpose(1, 2).flatten(2))) < 1e-5


@torch.no_grad()
def test_copies_of_a_virtual_token_count_as_one(any_base, batch, distance):
    one = draw(any_base, 3, 1)
    many = TaskAdapter(prefix=one.prefix.map(lambda tensor: tensor.expand(-1, 6, -1)))
    _, inputs, labels = batch
    found, expected = (any_base(inputs, labels, adapter, ORDERS["runs"]) for adapter in (many, one))
    assert distance(found, expected) < 1e-5
    assert distance(any_base(inputs, labels, TaskAdapter(), ORDERS["runs"]), expected) > 1e-2


@pytest.mark.parametrize("fused", [1, causal_modules.FUSED_QUERIES])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("memory", [False, True])
def test_mixed_tasks_are_single_tasks(any_base, trained, batch, order, memory, fused, distance, monkeypatch):
    """With and without gradients, by fused attention and by scores, whose paths differ; sliding windows too."""
    monkeypatch.setattr(causal_modules, "FUSED_QUERIES", fused)
    model = trained(any_base, config("both", memory=memory))
    instructions, inputs, labels = batch
    index = ORDERS[order]
    together = model(inputs, labels, model.adapt(instructions), index)
    with torch.no_grad():
        assert distance(model(inputs, labels, model.adapt(instructions), index), together) < 1e-5
        for n, task in enumerate(index.tolist()):
            own = inputs.map(lambda x, n=n: x[n : n + 1, : LENGTHS[n]])
            instruction = instructions.map(lambda x, task=task: x[task : task + 1, : [5, 8, 3][task]])
            alone = model(own, labels[n : n + 1], model.adapt(instruction), torch.tensor([0]))
            count = int((labels[n] != IGNORE_INDEX).sum())
            assert distance(alone[0, :count], together[n, :count]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_generation_is_the_chain_of_likeliest_tokens(base, trained, batch, order):
    model = trained(base, config(memory=True))
    instructions, inputs, _ = batch
    adapter, index = model.prepare(instructions), ORDERS[order]
    found = model.generate(inputs, adapter, index, GenerationConfig(max_new_tokens=6, min_new_tokens=6))
    chain = torch.zeros(len(index), 0, dtype=torch.long)
    for _ in range(6):
        # the last label is what is predicted, and read by nothing
        labels = torch.cat([chain, torch.zeros_like(index)[:, None]], dim=1)
        logits = model(inputs, labels, adapter, index)[:, -1]
        logits[:, 1] = float("-inf")  # no end before the sixth token
        chain = torch.cat([chain, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, chain)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_beams_are_the_same_in_a_mixed_batch_and_alone(base, trained, batch, order):
    model = trained(base, config())
    instructions, inputs, _ = batch
    decode = GenerationConfig(max_new_tokens=5, num_beams=3)
    index = ORDERS[order]
    together = model.generate(inputs, model.adapt(instructions), index, decode)
    for n, task in enumerate(index.tolist()):
        own = inputs.map(lambda x, n=n: x[n : n + 1, : LENGTHS[n]])
        alone = model.generate(own, model.prepare(instructions).select(task), torch.tensor([0]), decode)[0]
        assert torch.equal(together[n, : len(alone)], alone)


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_choices_score_as_teacher_forcing_does(base, trained, batch, order, distance):
    model = trained(base, config("both"))
    instructions, inputs, labels = batch
    adapter, index = model.prepare(instructions), ORDERS[order]
    choice_index = torch.tensor([0, 0, 1, 3, 3, 5])
    totals, _ = model.score(inputs, labels, choice_index, adapter, index)
    rows = inputs.map(lambda tensor: tensor[choice_index])
    expected, _ = sequence_log_likelihood(model(rows, labels, adapter, index[choice_index]), labels)
    assert distance(totals, expected) < 1e-5


@torch.no_grad()
def test_prepared_prefixes_are_taken_apart_and_joined(base, trained, batch, distance):
    model = trained(base, config())
    instructions, inputs, labels = batch
    prepared = model.prepare(instructions)
    parts = [prepared.select(row) for row in range(3)]
    assert [part.num_tasks for part in parts] == [1, 1, 1]
    assert sum(part.num_bytes for part in parts) == prepared.num_bytes > 0
    assert not any(tensor.requires_grad for tensor in prepared.tensors())
    for found, expected in zip(join(parts).tensors(), prepared.tensors(), strict=True):
        assert torch.equal(found, expected)
    assert {tensor.dtype for tensor in model.prepare(instructions, torch.bfloat16).tensors()} == {torch.bfloat16}
    fresh = model(inputs, labels, model.adapt(instructions), ORDERS["mixed"])
    # joined ones lie otherwise in memory, which some processors multiply in another order
    assert distance(model(inputs, labels, join(parts), ORDERS["mixed"]), fresh) < 1e-5


@torch.no_grad()
def test_merging_leaves_the_prefix_to_be_applied(base, trained, batch, distance):
    model = trained(base, config("both"))
    instructions, inputs, labels = batch
    adapter, index = model.prepare(instructions).select(1), torch.zeros(6, dtype=torch.long)
    expected = model(inputs, labels, adapter, index)
    with model.merged(adapter) as rest:
        assert rest.lora is None
        assert rest.prefix is adapter.prefix
        assert distance(model(inputs, labels, rest, index), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("generator", ["shared", "paper", "constant"])
def test_a_fresh_prefix_has_values_of_zero_and_counts_as_one_token_that_says_nothing(base, batch, generator, distance):
    instructions, inputs, labels = batch
    model = TagiModel(base, config(generator=generator, length=32))
    adapter = model.adapt(instructions)
    assert adapter.lora is None
    assert adapter.prefix.length == 32
    assert list(adapter.prefix.keys) == [site.name for site in base.prefix_sites]
    assert all(values.abs().max() == 0 for values in adapter.prefix.values.values())
    # keys differ, or all virtual tokens would stay alike for ever
    assert all(keys[0].unique(dim=0).shape[0] == 32 for keys in adapter.prefix.keys.values())
    silent = {path: torch.zeros(3, 1, keys.shape[-1]) for path, keys in adapter.prefix.keys.items()}
    expected = base(inputs, labels, TaskAdapter(prefix=PrefixWeights(silent, silent)), ORDERS["runs"])
    # K_0 is small: scores near 0
    assert distance(model(inputs, labels, adapter, ORDERS["runs"]), expected) < 0.2


@pytest.mark.parametrize("generator", ["shared", "paper", "constant"])
def test_gradient_reaches_every_tensor_that_writes_a_prefix_within_two_steps(base, batch, generator):
    instructions, inputs, labels = batch
    torch.manual_seed(0)
    model = TagiModel(base, config("both", generator))
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        prediction_loss(model(inputs, labels, model.adapt(instructions), ORDERS["runs"]), labels).mean().backward()
        optimizer.step()
    assert not [name for name, p in model.trained_parameters().items() if p.grad is None or p.grad.abs().max() == 0]


def test_checkpointed_blocks_see_the_prefix_again(base, trained, batch, distance):
    model = trained(base, config())
    instructions, inputs, labels = batch

    def gradient():
        model.zero_grad()
        prediction_loss(model(inputs, labels, model.adapt(instructions), ORDERS["mixed"]), labels).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.trained_parameters().values()])

    plain = gradient()
    checkpoint_blocks(base.model)
    assert distance(gradient(), plain) < 1e-5


@torch.no_grad()
def test_eager_and_fused_attention_agree_and_bfloat16_costs_its_rounding(any_base, trained, batch, distance):
    model = trained(any_base, config("both"))
    instructions, inputs, labels = batch

    def run():
        return model(inputs, labels, model.adapt(instructions), ORDERS["mixed"])

    fused = run()
    any_base.model.set_attn_implementation("eager")
    assert distance(run(), fused) < 1e-5
    any_base.model.set_attn_implementation("sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(run().float(), fused) < 0.1
    any_base.model.to(torch.bfloat16)
    assert distance(run().float(), fused) < 0.1


def test_what_makes_no_sense_is_refused(base):
    with pytest.raises(ValueError, match=r"prefix_length must be at least 1, got 0"):
        HypernetworkConfig(prefix_length=0)
    with pytest.raises(ValueError, match=r"memory_lora .*writes=prefix generates none: set writes=lora or both"):
        TagiConfig(LORA, HypernetworkConfig(writes="prefix"), memory_lora=True)

"""The options of a backbone: checkpointed blocks, compiled forward, 8-bit weights, types that are refused."""

import copy
import warnings

import pytest
import torch

from tagi_lightning.backbones import BackboneConfig, GenerationConfig, load_backbone
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.backbones.compilation import compile_forward, has_compiler
from tagi_lightning.backbones.loading import BackboneError, refuse_float16, set_execution
from tagi_lightning.backbones.quantization import Int8Linear, quantize_linears
from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig

CAUSAL = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False))

RUNS, MIXED = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 1, 1])
"""Examples in equal runs of one task each, whose adapters are not copied, and examples in any order."""


def draw(tokens, seed=0, longer=0):
    """Returns two instructions and four examples."""
    targets = tokens([3, 2, 5, 4 + longer], seed=seed + 1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    return tokens([5, 9 + longer], seed), tokens([6, 4, 8, 7 + longer], seed), labels


def loss_and_gradients(model, batch, task_index, prepared=False):
    """Returns the loss and the gradient of every trained tensor."""
    model.zero_grad()
    adapter = model.adapt(batch[0])
    adapter = model.backbone.prepare(adapter) if prepared else adapter
    loss = prediction_loss(model(batch[1], batch[2], adapter, task_index), batch[2]).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.trained_parameters().items()}


def is_close(found, expected, distance, tolerance):
    return distance(found[0], expected[0]) < tolerance and all(
        distance(found[1][name], gradient) < tolerance for name, gradient in expected[1].items()
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("task_index", [RUNS, MIXED], ids=["runs", "mixed"])
def test_checkpointed_blocks_run_twice_and_change_no_gradient(
    build, tokens, trained, distance, task_index, prepared, training
):
    model, batch, calls = trained(build("narrow")), draw(tokens), []
    expected = loss_and_gradients(model, batch, task_index, prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint_blocks(model.backbone.model)
    for stack in (model.backbone.model.encoder, model.backbone.model.decoder):
        stack.block[1].layer[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = loss_and_gradients(model.train(training), batch, task_index, prepared)
    # the instruction is encoded once without gradient; encoder and decoder run in the forward and the backward pass
    assert len(calls) == 1 + 2 * 2
    assert is_close(found, expected, distance, 1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_checkpointing_leaves_caches_of_keys_and_values_alone(build, tokens, trained, training):
    model, (instructions, inputs, choices) = trained(build("narrow")), draw(tokens)
    prepared, index = model.eval().prepare(instructions), torch.arange(4)

    def answers():
        generated = model.backbone.generate(inputs, prepared, MIXED, GenerationConfig(max_new_tokens=5, num_beams=2))
        return (generated, *model.backbone.score(inputs, choices, index, prepared, MIXED))

    expected = answers()
    checkpoint_blocks(model.backbone.model)
    model.train(training)
    assert all(torch.equal(a, b) for a, b in zip(answers(), expected, strict=True))


def test_a_checkpointed_backbone_keeps_its_names_and_can_be_copied(build, tokens, trained):
    model, batch = trained(build("narrow")), draw(tokens)
    names = list(model.backbone.state_dict())
    checkpoint_blocks(model.backbone.model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.backbone.parameters()).zero_()
    assert list(model.backbone.state_dict()) == names
    assert not torch.equal(loss_and_gradients(twin, batch, RUNS)[0], loss_and_gradients(model, batch, RUNS)[0])


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_int8_weights_change_the_logits_by_a_few_percent_and_gradients_reach_the_hypernetwork(kind, tokens, trained):
    models = [
        trained(load_backbone(BackboneConfig("tiny", dtype=kind, quantization=stored), vocabulary_size=64))
        for stored in (None, "int8")
    ]
    batch = draw(tokens)
    with torch.no_grad():
        plain, rounded = (m(batch[1], batch[2], m.adapt(batch[0]), MIXED).float() for m in models)
    assert 1e-4 < ((rounded - plain).norm() / plain.norm()).item() < 0.1
    expected, found = (loss_and_gradients(model, batch, MIXED)[1] for model in models)
    assert all(gradient.isfinite().all() for gradient in found.values())
    cosine = torch.nn.functional.cosine_similarity
    flat = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in (found, expected)]
    assert cosine(*flat, dim=0) > 0.95


def test_int8_takes_a_quarter_of_the_linear_layers_and_leaves_everything_else_as_it_is():
    plain, rounded = (
        load_backbone(BackboneConfig("tiny", quantization=stored), vocabulary_size=64) for stored in (None, "int8")
    )
    layers = {name for name, module in rounded.model.named_modules() if isinstance(module, Int8Linear)}
    blocks = {name for name, module in plain.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert layers == blocks - {"lm_head"}

    def size(model, inside):
        parameters = dict(model.named_parameters())
        return sum(p.nbytes for name, p in parameters.items() if (name.rpartition(".")[0] in layers) == inside)

    assert size(rounded.model, True) / size(plain.model, True) == pytest.approx(0.25, abs=0.01)
    assert size(rounded.model, False) == size(plain.model, False)
    assert not any(parameter.requires_grad for parameter in rounded.parameters())
    assert rounded.sites(LoraConfig()) == plain.sites(LoraConfig())
    # a way to store the same backbone: what was trained on the one fits the other
    assert rounded.digest() == plain.digest()


def test_an_int8_layer_is_off_by_at_most_half_a_level_and_keeps_8_bits_for_the_backward_pass():
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 8)
    linear.weight.data[3] = 0
    layer, kept = Int8Linear(linear), []
    weight = layer.weight * layer.scale[:, None]
    assert ((weight - linear.weight).abs() <= layer.scale[:, None] * 0.5001).all()
    x = torch.randn(2, 5, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = layer(x)
    assert {tuple(t.shape): t.dtype for t in kept} == {(8, 16): torch.int8, (8,): torch.float32}
    torch.testing.assert_close(output, x @ weight.T + linear.bias)
    gradient = torch.randn_like(output)
    found = torch.autograd.grad(output, x, gradient)[0]
    torch.testing.assert_close(found, gradient @ weight)


def test_an_int8_layer_follows_autocast():
    layer, x = Int8Linear(torch.nn.Linear(16, 8, bias=False)), torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert x.grad.dtype == torch.float32


def test_float16_is_refused_for_t5_and_says_why(backbone):
    with pytest.raises(BackboneError, match=r"overflow in float16.*backbone\.dtype=bfloat16"):
        load_backbone(BackboneConfig("tiny", dtype="float16"), vocabulary_size=64)
    with pytest.raises(BackboneError, match="precision=bf16-mixed"):
        refuse_float16(backbone, True, "--trainer.precision=bf16-mixed")
    refuse_float16(backbone, False, "")


def test_compilation_without_a_compiler_or_with_checkpointed_blocks_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="do not go together"):
        BackboneConfig("tiny", compile=True, gradient_checkpointing=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not has_compiler()
    with pytest.raises(BackboneError, match=r"C\+\+ compiler"):
        load_backbone(BackboneConfig("tiny", compile=True), vocabulary_size=64)


def test_compilation_of_a_decoder_only_model_is_refused(build_causal):
    with pytest.raises(BackboneError, match="is for T5"):
        set_execution(build_causal("llama"), BackboneConfig("tiny", compile=True))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
def test_compiled_equals_plain_at_any_length_without_compiling_again(build, tokens, trained, distance):
    model = trained(build("narrow", num_layers=1))
    batches = [draw(tokens), draw(tokens, seed=7, longer=6)]
    expected = [loss_and_gradients(model, batch, MIXED) for batch in batches]
    names = list(model.state_dict())
    torch._dynamo.reset()
    compile_forward(model.backbone)
    graphs = []
    for batch, plain in zip(batches, expected, strict=True):
        assert is_close(loss_and_gradients(model, batch, MIXED), plain, distance, 1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1]
    assert list(model.state_dict()) == names
    # the gradient of each loss term is taken by itself from one graph
    loss = prediction_loss(model(batch[1], batch[2], model.adapt(batch[0]), MIXED), batch[2]).mean()
    parameters = list(model.trained_parameters().values())
    twice = [torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_decoder_only_models_take_checkpointing_and_int8(build_causal, tokens, trained, distance, family):
    model, batch = trained(build_causal(family), CAUSAL), draw(tokens)
    expected = loss_and_gradients(model, batch, MIXED)
    checkpoint_blocks(model.backbone.model)
    assert is_close(loss_and_gradients(model, batch, MIXED), expected, distance, 1e-6)
    quantize_linears(model.backbone.model)
    assert isinstance(model.backbone.model.lm_head, torch.nn.Linear)
    rounded = loss_and_gradients(model, batch, MIXED)
    assert rounded[0] == pytest.approx(expected[0].item(), rel=0.1)
    assert all(gradient.isfinite().all() for gradient in rounded[1].values())

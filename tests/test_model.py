import copy

import pytest
import torch

from tagi_lightning.adapter import InstructionStates
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel

LORA = LoraConfig(rank=4)
INSTRUCTIONS = [5, 9, 3, 12, 7, 4, 6, 10]
INPUTS = [4, 7, 2, 6, 5, 3, 8, 6, 4, 7]
TARGETS = [3, 2, 5, 4, 2, 6, 3, 4, 2, 5]
TASK_INDEX = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 6, 7])
PIECES = {
    "all": TagiConfig(LORA),
    "post-norm": TagiConfig(LORA, fusion=FusionConfig(norm="post", width=8)),
    "paper": TagiConfig(LORA, HypernetworkConfig(generator="paper", pooling="attention")),
    "lora": TagiConfig(LORA, fusion=FusionConfig(enabled=False), decoder_memory=False),
    "fusion": TagiConfig(LORA, HypernetworkConfig(enabled=False), decoder_memory=False),
    "memory": TagiConfig(LORA, HypernetworkConfig(enabled=False), FusionConfig(enabled=False)),
}
KINDS = [(generator, pooling) for generator in ("paper", "shared") for pooling in ("mean", "attention")]


@pytest.fixture
def batch(tokens):
    """Ten examples of eight tasks: instructions, inputs and labels."""
    targets = tokens(TARGETS, seed=1)
    return tokens(INSTRUCTIONS), tokens(INPUTS), targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)


def run(model, batch, task_index=TASK_INDEX):
    instructions, inputs, labels = batch
    return model(inputs, labels, model.adapt(instructions), task_index)


def alone(batch, n, padding=0):
    """Returns example `n` of the batch by itself, with `padding` columns more than it needs."""
    instructions, inputs, labels = batch
    task = int(TASK_INDEX[n])

    def cut(tokens, row, length):
        rows = tokens.map(lambda tensor: tensor[row : row + 1, :length])
        return rows.map(lambda tensor: torch.nn.functional.pad(tensor, (0, padding)))

    target = torch.nn.functional.pad(labels[n : n + 1, : TARGETS[n]], (0, padding), value=IGNORE_INDEX)
    return cut(instructions, task, INSTRUCTIONS[task]), cut(inputs, n, INPUTS[n]), target


@torch.no_grad()
@pytest.mark.parametrize("generator", ["paper", "shared"])
def test_a_fresh_model_without_memory_is_transformers_t5_bit_for_bit(any_backbone, batch, generator, plain_t5):
    config = TagiConfig(LORA, HypernetworkConfig(generator=generator), decoder_memory=False)
    _, inputs, labels = batch
    expected = plain_t5(any_backbone)(input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels).logits
    assert torch.equal(run(TagiModel(any_backbone, config), batch), expected)


@torch.no_grad()
def test_a_fresh_model_with_memory_is_t5_whose_decoder_is_given_instruction_and_input(
    any_backbone, batch, plain_t5, distance
):
    """LoRA and fusion add exact zeros to T5 on the same memory and mask; the instruction's part is summed apart."""
    instructions, inputs, labels = batch
    plain = plain_t5(any_backbone)

    def encode(tokens):
        return plain.encoder(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state

    memory = torch.cat([encode(instructions)[TASK_INDEX], encode(inputs)], dim=1)
    mask = torch.cat([instructions.mask[TASK_INDEX], inputs.mask], dim=1)
    expected = plain(encoder_outputs=(memory,), attention_mask=mask, labels=labels).logits
    # float32: one softmax over two parts of the scores
    assert distance(run(TagiModel(any_backbone, TagiConfig(LORA)), batch), expected) < 1e-5


@pytest.mark.parametrize(("generator", "pooling"), KINDS)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gradient_reaches_every_trained_tensor_within_two_steps(backbone, batch, generator, pooling, norm):
    config = TagiConfig(LORA, HypernetworkConfig(generator=generator, pooling=pooling), FusionConfig(norm=norm))
    torch.manual_seed(0)
    model = TagiModel(backbone, config)
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        prediction_loss(run(model, batch), batch[2]).mean().backward()
        optimizer.step()
    still = [name for name, p in model.trained_parameters().items() if p.grad is None or p.grad.abs().max() == 0]
    assert not still
    # the output matrices write A first and B after it, and both halves must have moved
    last = list(model.hypernetwork.generator.heads.values()) if generator == "shared" else None
    for matrix in last or [mlp[-1] for mlp in model.hypernetwork.generator.mlps]:
        assert all(part.abs().max() > 0 for part in matrix.weight.grad.chunk(4))
    assert all(parameter.grad is None for parameter in backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize("pieces", PIECES)
def test_an_examples_logits_are_the_same_alone_or_among_eight_tasks_and_padded_or_not(
    any_backbone, batch, trained, pieces, distance
):
    model = trained(any_backbone, PIECES[pieces])
    together = run(model, batch)
    for n in range(len(INPUTS)):
        for padding in (0, 3):
            found = run(model, alone(batch, n, padding), torch.tensor([0]))
            # float32 with other orders of summation; relative to the largest logit
            assert distance(found[0, : TARGETS[n]], together[n, : TARGETS[n]]) < 1e-5


@pytest.mark.parametrize("pieces", ["all", "post-norm", "paper"])
def test_in_float64_company_and_padding_leave_nothing_behind(build, batch, trained, pieces, distance):
    """What float32 hides below its rounding would show here, in logits and in gradients."""
    model = trained(build("narrow"), PIECES[pieces]).double()
    together, gradient = run(model, batch), gradients(model, (batch, TASK_INDEX))
    for n in range(len(INPUTS)):
        found = run(model, alone(batch, n, 3), torch.tensor([0]))
        assert distance(found[0, : TARGETS[n]], together[n, : TARGETS[n]]) < 1e-13
    one_by_one = [(alone(batch, n, 3), torch.tensor([0])) for n in range(len(INPUTS))]
    assert distance(gradients(model, *one_by_one), gradient) < 1e-13


@pytest.mark.parametrize("pieces", PIECES)
def test_every_piece_lets_the_instruction_change_the_answer(backbone, batch, trained, pieces, distance):
    model = trained(backbone, PIECES[pieces])
    assert distance(run(model, batch, TASK_INDEX.flip(0)), run(model, batch)) > 1e-2


def gradients(model, *batches):
    """Returns the gradient of the mean loss over all examples of `batches`, as one vector."""
    model.zero_grad()
    count = sum(len(labels) for (_, _, labels), _ in batches)
    for batch, task_index in batches:
        (prediction_loss(run(model, batch, task_index), batch[2]).sum() / count).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.trained_parameters().values()])


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("pieces", ["all", "post-norm", "paper", "lora", "fusion"])
def test_gradients_are_the_same_alone_or_among_eight_tasks_and_padded_or_not(
    build, batch, trained, pieces, padding, distance
):
    model = trained(build("narrow"), PIECES[pieces])
    together = gradients(model, (batch, TASK_INDEX))
    one_by_one = [(alone(batch, n, padding), torch.tensor([0])) for n in range(len(INPUTS))]
    assert distance(gradients(model, *one_by_one), together) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("pieces", PIECES)
def test_a_cached_adapter_gives_the_logits_of_a_fresh_one(any_backbone, batch, trained, pieces):
    model = trained(any_backbone, PIECES[pieces])
    instructions, inputs, labels = batch
    assert torch.equal(model(inputs, labels, model.prepare(instructions), TASK_INDEX), run(model, batch))


def test_a_cached_adapter_carries_no_graph_and_one_type(backbone, batch, trained):
    adapter = trained(backbone).prepare(batch[0], torch.bfloat16)
    tensors = [
        adapter.memory.states,
        *adapter.fusion.keys,
        *adapter.fusion.values,
        *adapter.lora.a.values(),
        *adapter.lora.b.values(),
    ]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_a_bfloat16_cache_costs_its_rounding_and_no_more(backbone, batch, trained, distance):
    model = trained(backbone)
    instructions, inputs, labels = batch
    with torch.no_grad():
        found = model(inputs, labels, model.prepare(instructions, torch.bfloat16), TASK_INDEX)
        # bfloat16 has 8 bits: 0.4 % a number
        assert 0 < distance(found, run(model, batch)) < 0.05


def test_a_cache_of_other_weights_is_refused(backbone, batch, trained):
    model = trained(backbone)
    instructions, inputs, labels = batch
    adapter = model.prepare(instructions)
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=0.1)
    prediction_loss(run(model, batch), labels).mean().backward()
    model(inputs, labels, adapter, TASK_INDEX)
    optimizer.step()
    with pytest.raises(ValueError, match=r"PreparedAdapter.*prepare"):
        model(inputs, labels, adapter, TASK_INDEX)
    with pytest.raises(ValueError, match=r"PreparedAdapter.*prepare"):
        model.generate(inputs, adapter, TASK_INDEX, GenerationConfig(max_new_tokens=2))
    model(inputs, labels, model.prepare(instructions), TASK_INDEX)
    with pytest.raises(ValueError, match="PreparedAdapter"):
        trained(backbone, seed=1)(inputs, labels, adapter, TASK_INDEX)


def test_a_cache_is_refused_in_training(backbone, batch, trained):
    model = trained(backbone)
    adapter = model.prepare(batch[0])
    with pytest.raises(ValueError, match="adapt"):
        model.train()(batch[1], batch[2], adapter, TASK_INDEX)


def test_the_digest_follows_the_trained_weights_and_returns_with_them(backbone, trained):
    model = trained(backbone)
    before = model.digest()
    assert trained(backbone).digest() == before
    state = copy.deepcopy(model.trained_state())
    with torch.no_grad():
        model.fusion.layers[0].gate += 0.1
    assert model.digest() != before
    model.load_state_dict(state, strict=False)
    assert model.digest() == before


def test_the_digest_follows_the_measured_states(build, trained):
    model = trained(build("narrow"), TagiConfig(LORA, HypernetworkConfig(standardize=True)))
    before = model.digest()
    model.hypernetwork.measure(torch.randn(5, model.backbone.width, generator=torch.Generator().manual_seed(0)))
    assert model.digest() != before


def test_a_memory_that_is_left_out_is_not_read_again():
    with pytest.raises(ValueError, match="decoder_memory=false leaves out"):
        TagiConfig(decoder_memory=False, memory_lora=True)


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(build, batch, trained, distance):
    model = trained(build("narrow"))
    calls = []
    block = model.backbone.model.encoder.block[1]
    handle = block.layer[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    plain, plain_calls = gradients(model, (batch, TASK_INDEX)), len(calls)
    calls.clear()
    checkpoint_blocks(model.backbone.model)
    saved, saved_calls = gradients(model, (batch, TASK_INDEX)), len(calls)
    handle.remove()
    # the instruction is encoded without gradient, so its pass is never run again
    assert (plain_calls, saved_calls) == (2, 3)
    assert distance(saved, plain) < 1e-5
    one_by_one = [(alone(batch, n), torch.tensor([0])) for n in range(len(INPUTS))]
    assert distance(gradients(model, *one_by_one), plain) < 1e-5


def test_checkpointing_keeps_two_adapters_apart(build, batch, trained, distance):
    """Two forward passes with different adapters, then one backward pass through both."""
    model = trained(build("narrow"))
    other = (batch[0].map(lambda tensor: tensor.flip(0)), *batch[1:])

    def both():
        model.zero_grad()
        losses = [prediction_loss(run(model, each), batch[2]).mean() for each in (batch, other)]
        sum(losses).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.trained_parameters().values()])

    plain = both()
    checkpoint_blocks(model.backbone.model)
    assert distance(both(), plain) < 1e-5


def test_no_gradient_reaches_a_frozen_backbone_through_the_instruction(backbone, batch, trained):
    assert not trained(backbone).encode_instructions(batch[0]).states.requires_grad


def test_a_backbone_that_trains_gets_gradient_through_the_instruction_and_is_saved(build, batch, trained):
    backbone = build("narrow")
    backbone.model.encoder.final_layer_norm.requires_grad_(True)
    model = trained(backbone)
    assert model.encode_instructions(batch[0]).states.requires_grad
    name = "backbone.model.encoder.final_layer_norm.weight"
    assert name in model.trained_parameters()
    assert [key for key in model.trained_state() if key.startswith("backbone.")] == [name]


def test_encoded_instructions_need_not_be_encoded_again(backbone, batch, trained):
    model = trained(backbone)
    instructions, inputs, labels = batch
    states = model.encode_instructions(instructions)
    assert isinstance(states, InstructionStates)
    assert torch.equal(model(inputs, labels, model.adapt(states), TASK_INDEX), run(model, batch))


@torch.no_grad()
def test_a_prepared_adapter_holds_the_decoders_keys_and_values_of_the_instructions(backbone, batch, trained):
    model = trained(backbone)
    instructions, inputs, _ = batch
    prepared = model.prepare(instructions)
    assert len(prepared.memory.keys_values) == model.backbone.model.config.num_decoder_layers
    lengths = {part.shape[2] for pair in prepared.memory.keys_values for part in pair}
    assert lengths == {instructions.ids.shape[1]}
    projected = []
    layer = model.backbone._cross_attentions()[0]
    hook = layer.k.register_forward_hook(lambda module, arguments, output: projected.append(output.shape[1]))
    model.generate(inputs, prepared, TASK_INDEX, GenerationConfig(max_new_tokens=3))
    hook.remove()
    assert projected == [inputs.ids.shape[1]]  # the input's own tokens, once


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 4])
def test_prepared_and_fresh_adapters_generate_alike(backbone, batch, trained, beams):
    model = trained(backbone)
    instructions, inputs, _ = batch
    config = GenerationConfig(max_new_tokens=6, num_beams=beams)
    fresh = model.generate(inputs, model.adapt(instructions), TASK_INDEX, config)
    assert torch.equal(model.generate(inputs, model.prepare(instructions), TASK_INDEX, config), fresh)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_mixed_bfloat16_trains_float32_weights(build, batch, trained, storage):
    model = trained(build("narrow").to(storage))
    with torch.autocast("cpu", torch.bfloat16):
        loss = prediction_loss(run(model, batch), batch[2]).mean()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.trained_parameters().items():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        exact = prediction_loss(run(model.float(), batch), batch[2]).mean()
    # eight-bit mantissas through six blocks
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_mixed_bfloat16_generates(build, batch, trained):
    model = trained(build("narrow").to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        ids = model.generate(batch[1], model.prepare(batch[0]), TASK_INDEX, GenerationConfig(max_new_tokens=3))
    assert ids.shape[0] == len(INPUTS)


def test_an_empty_input_row_is_no_nan(backbone, trained, tokens):
    """A row of padding alone, as a bucket's filler would be, must not spoil the others."""
    inputs = Tokens.pad([[5, 6, 1], []], pad_id=0)
    model = trained(backbone)
    with torch.no_grad():
        logits = model(inputs, torch.tensor([[4, 1], [4, 1]]), model.adapt(tokens([5])), torch.tensor([0, 0]))
    assert logits.isfinite().all()

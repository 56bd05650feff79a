import math

import pytest
import torch

from tagi_lightning.fusion import EncoderFusion, FusionConfig, FusionLayer

TASKS, EXAMPLES, INSTRUCTION, LENGTH, WIDTH, HEADS, BLOCKS = 3, 4, 6, 5, 32, 4, 2
SHAPE = {"blocks": BLOCKS, "width": WIDTH, "heads": HEADS, "inner": 16}
TASK_INDEX = torch.tensor([2, 0, 1, 2])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def states():
    return draw(TASKS, INSTRUCTION, WIDTH)


@pytest.fixture
def mask():
    return (torch.arange(INSTRUCTION) < torch.tensor([[6], [2], [4]])).long()


def make(norm="pre", width=None, gate=0.7):
    torch.manual_seed(0)
    fusion = EncoderFusion(FusionConfig(norm=norm, width=width), **SHAPE)
    for layer in fusion.layers:
        if layer.gate is not None:
            torch.nn.init.constant_(layer.gate, gate)
    return fusion


def test_a_fresh_gated_fusion_changes_no_bit(states, mask):
    hidden = draw(EXAMPLES, LENGTH, WIDTH, seed=1)
    fused = EncoderFusion(FusionConfig(), **SHAPE)(states, mask)
    for block in range(BLOCKS):
        assert torch.equal(fused.fuse(block, hidden, TASK_INDEX), hidden)


def test_the_post_norm_of_the_papers_letter_normalises_its_result(states, mask):
    fused = make("post")(states, mask).fuse(0, draw(EXAMPLES, LENGTH, WIDTH, seed=1), TASK_INDEX)
    # RMSNorm with unit weight: root mean square 1 up to its epsilon
    assert torch.allclose(fused.square().mean(-1), torch.ones(EXAMPLES, LENGTH), atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_of_the_instruction_and_company_in_the_batch_change_nothing(norm, states, mask, distance):
    fusion, hidden = make(norm), draw(EXAMPLES, LENGTH, WIDTH, seed=1)
    together = fusion(states.masked_fill(mask[..., None] == 0, 1e3), mask).fuse(1, hidden, TASK_INDEX)
    for example, task in enumerate(TASK_INDEX.tolist()):
        length = int(mask[task].sum())
        alone = fusion(states[task : task + 1, :length], mask[task : task + 1, :length])
        found = alone.fuse(1, hidden[example : example + 1], torch.tensor([0]))
        assert distance(together[example : example + 1], found) < 1e-5


def test_every_block_has_weights_of_its_own(states, mask):
    fused, hidden = make()(states, mask), draw(EXAMPLES, LENGTH, WIDTH, seed=1)
    assert not torch.allclose(fused.fuse(0, hidden, TASK_INDEX), fused.fuse(1, hidden, TASK_INDEX))


@pytest.mark.parametrize(("width", "parameters"), [(None, 4 * 16 * 32), (8, 4 * 8 * 32)])
def test_inner_width_is_the_backbones_or_the_configured_one(width, parameters):
    layer = make(width=width).layers[0]
    assert sum(p.numel() for p in layer.parameters() if p.dim() == 2) == parameters


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"fusion\.width 10 .* 4 heads"):
        FusionLayer(WIDTH, 10, HEADS, "pre")


def test_keys_and_values_are_made_once_a_task_and_can_be_cut_off(states, mask):
    fused = make()(states, mask)
    assert len(fused.keys) == len(fused.values) == BLOCKS
    assert fused.keys[0].shape == (TASKS, HEADS, INSTRUCTION, 16 // HEADS)
    assert fused.keys[0].requires_grad
    detached = fused.map(lambda tensor: tensor.detach().bfloat16())
    assert not detached.keys[0].requires_grad
    assert {tensor.dtype for tensor in (*detached.keys, *detached.values)} == {torch.bfloat16}


def test_gates_are_reported_as_the_factors_they_are():
    assert [gate.item() for gate in make(gate=0.7).gates()] == pytest.approx([math.tanh(0.7)] * BLOCKS)
    assert make("post").gates() == []


def test_bfloat16_hidden_states_stay_bfloat16(states, mask):
    fused = make()(states.bfloat16(), mask)
    assert fused.fuse(0, draw(EXAMPLES, LENGTH, WIDTH, seed=1).bfloat16(), TASK_INDEX).dtype == torch.bfloat16

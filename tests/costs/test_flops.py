import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from tagi_lightning.costs.flops import count_flops, eager_attention, token_formula

BATCH, LENGTH, WIDTH, HEADS, HEAD_WIDTH, HIDDEN, VOCABULARY = 2, 7, 16, 2, 4, 32, 50


@pytest.fixture(scope="module")
def model():
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=HEAD_WIDTH,
        d_ff=HIDDEN,
        num_layers=1,
        num_heads=HEADS,
        decoder_start_token_id=0,
        attn_implementation="sdpa",
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_linear_costs_two_per_multiply_add(mode):
    m, k, n = 3, 8, 4
    layer, inputs = torch.nn.Linear(k, n), torch.randn(m, k)
    with mode():
        assert count_flops(lambda: layer(inputs)) == 2 * m * n * k


def test_the_backward_pass_is_counted():
    layer, inputs = torch.nn.Linear(8, 4), torch.randn(3, 8, requires_grad=True)
    assert count_flops(lambda: layer(inputs).sum().backward()) == 3 * 2 * 3 * 4 * 8


def test_eager_t5_costs_what_its_shapes_say(model):
    tokens = torch.ones(BATCH, LENGTH, dtype=torch.long)
    with torch.no_grad(), eager_attention(model):
        found = count_flops(lambda: model(input_ids=tokens, labels=tokens))
    rows, inner = BATCH * LENGTH, HEADS * HEAD_WIDTH
    projections = 4 * 2 * rows * WIDTH * inner
    scores_and_sums = 2 * 2 * BATCH * HEADS * LENGTH * LENGTH * HEAD_WIDTH
    feed_forward = 2 * 2 * rows * WIDTH * HIDDEN
    output = 2 * rows * WIDTH * VOCABULARY
    assert found == 3 * (projections + scores_and_sums) + 2 * feed_forward + output


def test_fused_attention_on_the_cpu_is_refused(model):
    tokens = torch.ones(BATCH, LENGTH, dtype=torch.long)
    with torch.no_grad(), pytest.raises(RuntimeError, match="eager_attention"):
        count_flops(lambda: model(input_ids=tokens, labels=tokens))


def test_eager_attention_switches_back_also_after_an_error(model):
    def implementations():
        return {part.config._attn_implementation for part in (model, model.encoder, model.decoder)}

    with eager_attention(model):
        assert implementations() == {"eager"}
    assert implementations() == {"sdpa"}
    with pytest.raises(KeyError), eager_attention(model):
        raise KeyError
    assert implementations() == {"sdpa"}


@pytest.mark.parametrize(("instruction", "expected"), [(93, 0.544), (347, 0.247)])
def test_formula_gives_the_papers_figures(instruction, expected):
    assert token_formula(instruction, 109, n=100) == pytest.approx(expected, abs=5e-4)


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_formula_lies_between_the_inputs_share_and_one(t, i, n):
    cost = token_formula(t, i, n)
    assert i / (t + i) <= cost <= 1 + 1e-12
    assert token_formula(t, i, 1) == pytest.approx(1)


@pytest.mark.parametrize("arguments", [(93, 109, 0), (0, 0, 1), (-1, 5, 1)])
def test_formula_refuses_what_it_cannot_divide(arguments):
    with pytest.raises(ValueError, match="n >= 1"):
        token_formula(*arguments)

from contextlib import ExitStack
from functools import partial

import pytest
import torch

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.bench.prefix import BATCH, INPUT, INSTRUCTIONS, OUTPUT, SMOLLM2, costs, decoder, system
from tagi_lightning.bench.shapes import random_tokens
from tagi_lightning.costs.flops import count_flops, eager_attention
from tagi_lightning.costs.prefix_costs import AdapterShape, DecoderShape, PrefixCosts, PromptingCost
from tagi_lightning.lora import LoraSite

SETTING = "def"


@pytest.fixture(scope="module")
def model():
    return decoder("tiny")


@pytest.fixture(scope="module")
def counted(model):
    """Operations of an input, and of what is paid once, counted on the model itself."""
    instruction = random_tokens(1, INSTRUCTIONS[SETTING], model.vocabulary_size, seed=2)
    inputs = random_tokens(BATCH, INPUT, model.vocabulary_size, seed=0)
    prompts = random_tokens(BATCH, INSTRUCTIONS[SETTING] + INPUT, model.vocabulary_size, seed=3)
    labels = random_tokens(BATCH, OUTPUT, model.vocabulary_size, seed=1).ids
    index, nothing = torch.zeros(BATCH, dtype=torch.long), TaskAdapter()
    cached, lora, prefix = system(model, False, True), system(model, True, False), system(model, True, True)

    def each(of, rows, adapter):
        return count_flops(lambda: of(rows, labels, adapter, index)) / BATCH

    def merged(of):
        with ExitStack() as stack:
            prepared, rest = of.prepare(instruction), []
            once = count_flops(partial(of.prepare, instruction))
            once += count_flops(lambda: rest.append(stack.enter_context(of.merged(prepared))))
            return once, each(of, inputs, rest[0])

    with torch.no_grad(), eager_attention(model.model):
        reading, generating = (count_flops(partial(of.prepare, instruction)) for of in (cached, lora))
        return {
            "none": (0, each(lora, inputs, nothing)),
            "concatenated": (0, each(lora, prompts, nothing)),
            "cached": (reading, each(cached, inputs, cached.prepare(instruction))),
            "lora": merged(lora),
            "lora_unmerged": (generating, each(lora, inputs, lora.prepare(instruction))),
            "prefix": merged(prefix),
        }


def test_the_formulas_are_what_the_model_computes(model, counted):
    told = costs(system(model, True, False), SETTING).systems()
    assert told.keys() == counted.keys()
    for name, (once, each) in counted.items():
        # rotary embeddings are matrix products, too, and not in the formulas
        assert told[name].once == pytest.approx(once, rel=2e-3), name
        assert told[name].each == pytest.approx(each, rel=2e-3), name


def test_the_bytes_are_those_of_what_is_prepared(model):
    told = costs(system(model, True, False), SETTING)
    instruction = random_tokens(1, INSTRUCTIONS[SETTING], model.vocabulary_size, seed=2)
    lora = system(model, True, False).prepare(instruction)
    assert lora.num_bytes == 4 * told.adapter.values
    memory = system(model, False, True).prepare(instruction).memory
    pairs = [tensor for pair in memory.keys_values for tensor in pair]
    assert sum(tensor.numel() for tensor in pairs) == told.instruction * told.model.key_values


def test_a_break_even_is_where_both_cost_the_same(model):
    told = costs(system(model, True, False), SETTING)
    systems = told.systems()
    for reference in ("concatenated", "cached"):
        inputs = systems["lora"].pays_after(systems[reference])
        assert 0 < inputs < float("inf")
        assert systems["lora"].once + inputs * systems["lora"].each == pytest.approx(
            systems[reference].once + inputs * systems[reference].each
        )
    count = told.instructions_break_even(type_bytes=2)
    own = told.adapter.generator_bytes + count * told.adapter.values * 2
    assert own == pytest.approx(count * told.instruction * told.model.key_values * 2)


def test_short_instructions_are_where_the_adapter_loses():
    """Unmerged, and in memory, below the tokens that its own numbers are worth."""
    site = LoraSite("q", 8, 8, "decoder_self", 0, "q")
    shape = DecoderShape(token_flops=1000, pair_flops=16, output_flops=500, key_values=8)
    adapter = AdapterShape.of([site], 4, generate_flops=100, generator_bytes=1000)
    assert (adapter.values, adapter.token_flops, adapter.merge_flops) == (64, 128, 512)

    def at(instruction):
        return PrefixCosts(shape, adapter, instruction, 10, 2)

    assert (at(1).memory_break_even, at(1).unmerged_break_even) == (8, 8)
    for tokens in (7, 8):
        systems = at(tokens).systems()
        assert systems["lora_unmerged"].pays_after(systems["cached"]) == float("inf")
        assert at(tokens).instructions_break_even() == float("inf")
    systems = at(9).systems()
    assert 0 < systems["lora_unmerged"].pays_after(systems["cached"]) < float("inf")
    assert 0 < at(9).instructions_break_even() < float("inf")
    assert systems["prefix"].pays_after(systems["cached"]) == float("inf")
    assert systems["none"].pays_after(systems["cached"]) == 0


def test_many_tasks_share_nothing_but_the_examples_of_one_task_do():
    shape = DecoderShape(token_flops=1, pair_flops=1, output_flops=1, key_values=10)
    costs_of = PrefixCosts(shape, AdapterShape(50, 1, 1, 1, 1), instruction=20, input=3, output=2)
    assert costs_of.held(1, 4) == {"concatenated": 1000, "cached": 400, "lora": 250, "prefix": 450}
    assert costs_of.held(4, 4) == {"concatenated": 1000, "cached": 1000, "lora": 400, "prefix": 1200}


def test_smollm2_has_the_numbers_that_the_documentation_tells():
    from transformers import LlamaConfig

    shape = DecoderShape.of(LlamaConfig(**SMOLLM2))
    assert shape.key_values * 2 == 23_040
    assert shape.token_flops == 2 * 106_168_320
    assert PromptingCost(0, 3).flops(5) == 15

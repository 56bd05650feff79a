"""A decoder-only model's generated adapter against the concatenated prompt, without and with prefix caching.

The cached prefix is what serving systems do: the instruction's keys and values are kept, and shared by its inputs.
Random weights at SmolLM2-135M's shapes. T tasks, B examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from transformers import LlamaConfig

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import ConditionedLlama
from tagi_lightning.bench.measure import Result, in_turn, summarize
from tagi_lightning.bench.shapes import random_tokens
from tagi_lightning.costs.flops import count_flops
from tagi_lightning.costs.prefix_costs import AdapterShape, DecoderShape, PrefixCosts
from tagi_lightning.data.batch import Tokens
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel

INSTRUCTIONS = {"def": 86, "def+2pos": 276}
"""Mean tokens of SNI's test instructions with SmolLM2's tokenizer, by setting."""
INPUT, OUTPUT = 110, 9
"""Mean tokens of their inputs and outputs."""
BATCH, TASKS, INPUTS = 8, 8, 100
"""Examples decoded together, tasks of a mixed batch, and inputs of a task over which operations are spread."""
RANK, HIDDEN = 16, 64

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXACT_LENGTH = GenerationConfig(max_new_tokens=OUTPUT, min_new_tokens=OUTPUT)
TITLES = {
    "none": "no instruction",
    "cached": "cached prefix",
    "lora": "TAGI-LoRA",
    "lora_unmerged": "TAGI-LoRA, unmerged",
    "prefix": "TAGI with prefix",
}


def decoder(size: str) -> CausalBackbone:
    """Returns a frozen Llama with random weights: a tiny one for size tiny, else of SmolLM2-135M's shapes."""
    shape = TINY if size == "tiny" else SMOLLM2
    config = LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=True)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CausalBackbone(ConditionedLlama(config), size)
    model.freeze()
    return model.eval()


def system(model: CausalBackbone, lora: bool, memory: bool) -> TagiModel:
    """Returns an untrained TAGI model on `model`: LoRA and prefix, one of them, or neither."""
    hypernetwork = HypernetworkConfig(enabled=lora, hidden=HIDDEN)
    config = TagiConfig(LoraConfig(rank=RANK), hypernetwork, FusionConfig(enabled=False), decoder_memory=memory)
    return TagiModel(model, config).eval()


def costs(model: TagiModel, setting: str) -> PrefixCosts:
    """Returns the formulas for `model` at the lengths of a setting."""
    assert model.hypernetwork is not None
    length = INSTRUCTIONS[setting]
    states, mask = torch.zeros(1, length, model.backbone.width), torch.ones(1, length, dtype=torch.long)
    generating = count_flops(partial(model.hypernetwork, states, mask))
    held = [*model.hypernetwork.parameters(), *model.hypernetwork.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    adapter = AdapterShape.of(model.sites, RANK, generating, size)
    return PrefixCosts(DecoderShape.of(model.backbone.model.config), adapter, length, INPUT, OUTPUT)


class Known:
    """A task that every system knows, and B inputs of it to answer."""

    def __init__(self, size: str, setting: str) -> None:
        """Prepares the systems on one model."""
        length, model = INSTRUCTIONS[setting], decoder(size)
        self.instruction = random_tokens(1, length, model.vocabulary_size, seed=2)
        inputs = random_tokens(BATCH, INPUT, model.vocabulary_size, seed=0)
        prompts = random_tokens(BATCH, length + INPUT, model.vocabulary_size, seed=3)
        index, bare = torch.zeros(BATCH, dtype=torch.long), TaskAdapter()
        self.cached, self.lora = system(model, False, True), system(model, True, False)
        prefix = system(model, True, True)

        def answer(of: TagiModel, adapter: TaskAdapter, rows: Tokens = inputs) -> Callable[[], object]:
            return partial(of.generate, rows, adapter, index, EXACT_LENGTH)

        def merged(of: TagiModel) -> Callable[[], object]:
            adapter = of.prepare(self.instruction)

            def merge_and_answer() -> None:
                with of.merged(adapter) as rest:
                    of.generate(inputs, rest, index, EXACT_LENGTH)

            return merge_and_answer

        self.systems = {
            "concatenated": answer(self.lora, bare, prompts),
            "cached": answer(self.cached, self.cached.prepare(self.instruction)),
            "lora": merged(self.lora),
            "lora_unmerged": answer(self.lora, self.lora.prepare(self.instruction)),
            "prefix": merged(prefix),
            "none": answer(self.lora, bare),
        }


@torch.no_grad()
def known_task(size: str, repeats: int, setting: str) -> list[Result]:
    """Inputs of a known task with generation, merging included, and what knowing it costs."""
    known = Known(size, setting)
    names = list(known.systems)
    times = in_turn(list(known.systems.values()), repeats)
    adapting, reading = (partial(each.prepare, known.instruction) for each in (known.lora, known.cached))
    preparing = in_turn([adapting, reading], repeats)
    seconds = {name: median(row[side] for row in times) for side, name in enumerate(names)}
    results = []
    for reference in ("concatenated", "cached"):
        below = names.index(reference)
        for name, title in TITLES.items():
            if name == reference or (reference == "cached" and name == "none"):
                continue
            compares = f"{title} / {'concatenated' if below == 0 else 'cached prefix'}, {BATCH} inputs, {setting}"
            ratios = [row[names.index(name)] / row[below] for row in times]
            case = f"prefix_{name}_{setting}" + ("_cached" if below else "")
            results.append(summarize(case, compares, ratios, seconds=seconds))
    compares = f"reading the instruction and generating its LoRA / reading it, {setting}"
    both = dict(zip(("lora", "cached"), map(median, zip(*preparing, strict=True)), strict=True))
    ratios = [row[0] / row[1] for row in preparing]
    return [*results, summarize(f"prefix_prepare_{setting}", compares, ratios, seconds=both)]


@torch.no_grad()
def mixed_tasks(size: str, repeats: int, setting: str) -> Result:
    """One example of each of eight tasks in a batch: eight unmerged adapters against eight cached prefixes."""
    model = decoder(size)
    instructions = random_tokens(TASKS, INSTRUCTIONS[setting], model.vocabulary_size, seed=2)
    inputs, index = random_tokens(TASKS, INPUT, model.vocabulary_size, seed=0), torch.arange(TASKS)
    sides = []
    for lora in (True, False):
        side = system(model, lora, not lora)
        sides.append(partial(side.generate, inputs, side.prepare(instructions), index, EXACT_LENGTH))
    times = in_turn(sides, repeats)
    compares = f"{TASKS} tasks x 1 input in a batch: TAGI-LoRA, unmerged / cached prefixes, {setting}"
    seconds = [median(row[side] for row in times) for side in range(2)]
    ratios = [row[0] / row[1] for row in times]
    return summarize(f"prefix_tasks_{setting}", compares, ratios, seconds=seconds)


def counted(size: str, setting: str) -> list[Result]:
    """Operations and bytes by formula, and from where on the adapter is the cheaper one."""
    told = costs(system(decoder(size), True, False), setting)
    systems, results = told.systems(), []
    cached, merged = systems["cached"], systems["lora"]
    for reference in ("concatenated", "cached"):
        for name, title in TITLES.items():
            ratio = systems[name].flops(INPUTS) / systems[reference].flops(INPUTS)
            if name == reference:
                continue
            case = f"prefix_flops_{name}_{setting}" + ("_cached" if reference == "cached" else "")
            compares = f"operations of {INPUTS} inputs, {title} / {reference}, {setting}"
            results.append(summarize(case, compares, [ratio]))
    even = {
        "instruction_tokens": told.memory_break_even,
        "instructions": told.instructions_break_even(),
        "unmerged_tokens": told.unmerged_break_even,
        "inputs_concatenated": merged.pays_after(systems["concatenated"]),
        "inputs_cached": merged.pays_after(cached),
        "inputs_cached_unmerged": systems["lora_unmerged"].pays_after(cached),
    }
    size_of = told.adapter.values / (told.instruction * told.model.key_values)
    compares = f"bytes of the adapter / of the instruction's keys and values, {setting}"
    results.append(summarize(f"prefix_bytes_{setting}", compares, [size_of], break_even=even))
    held = told.held(TASKS, TASKS * 4)
    for name in ("cached", "lora", "prefix"):
        compares = f"held while decoding {TASKS} tasks x 4 inputs, {name} / concatenated, {setting}"
        results.append(summarize(f"prefix_held_{name}_{setting}", compares, [held[name] / held["concatenated"]]))
    return results


def prefix(size: str, repeats: int) -> list[Result]:
    """TAGI-LoRA and TAGI with prefix against the concatenated prompt and a cached prefix."""
    results = []
    for setting in INSTRUCTIONS:
        results += [*counted(size, setting), *known_task(size, repeats, setting), mixed_tasks(size, repeats, setting)]
    return results

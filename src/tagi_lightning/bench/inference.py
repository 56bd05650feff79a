"""What an adapter costs once a task is known, against the backbone alone and against concatenation.

Every system decodes exactly the reference's length. T tasks, B examples.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

import torch

from tagi_lightning.adapter import PreparedAdapter, TaskAdapter
from tagi_lightning.backbones import Backbone, GenerationConfig
from tagi_lightning.bench.measure import Result, in_turn, summarize
from tagi_lightning.bench.shapes import backbone, random_tokens
from tagi_lightning.costs.flops import count_flops, eager_attention
from tagi_lightning.costs.lengths import INPUT, INSTRUCTIONS, OUTPUT
from tagi_lightning.data.batch import Tokens
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.model import TagiConfig, TagiModel

BATCH = 32
PER_TASK = 100
"""Instances of a task, over which its preparation is spread."""
BATCHES = 3
"""Batches of a task whose answers are timed."""
SHORT = 8
"""Tokens of a short answer."""
EXACT_LENGTH = GenerationConfig(max_new_tokens=OUTPUT, min_new_tokens=OUTPUT)


def tagi(model: Backbone, fusion: bool = True, narrow: bool = False) -> TagiModel:
    """Returns an untrained TAGI model: full fusion, fusion of a quarter of the width, or none."""
    width = model.fusion_shape["inner"] // 4 if narrow else None
    return TagiModel(model, TagiConfig(fusion=FusionConfig(enabled=fusion, width=width))).eval()


def zeros(rows: int) -> torch.Tensor:
    """Returns the task index of `rows` examples of one task."""
    return torch.zeros(rows, dtype=torch.long)


def versus(
    case: str, compares: str, one: Callable[[], object], other: Callable[[], object], repeats: int, at_most: float
) -> Result:
    """Times `one` and `other` in turn and returns their paired ratios."""
    times = in_turn([one, other], repeats)
    seconds = [median(row[side] for row in times) for side in range(2)]
    return summarize(case, compares, [row[0] / row[1] for row in times], at_most, seconds=seconds)


def task_flops(system: TagiModel, instruction: Tokens, per_input: Callable[[TaskAdapter], float]) -> float:
    """Returns the operations of one of a task's 100 inputs: its own, and its share of preparing and merging."""
    adapters: list[PreparedAdapter] = []
    preparing = count_flops(lambda: adapters.append(system.prepare(instruction)))
    with ExitStack() as stack:
        merging = count_flops(lambda: adapters.append(stack.enter_context(system.merged(adapters[0]))))
        return (preparing + merging) / PER_TASK + per_input(adapters[1])


@torch.no_grad()
def flops(size: str, repeats: int) -> list[Result]:
    """Operations of a task with 100 instances, counted; the same in every repeat."""
    model = backbone(size)
    inputs = random_tokens(BATCH, INPUT, model.vocabulary_size, seed=0)
    labels = random_tokens(BATCH, OUTPUT, model.vocabulary_size, seed=1).ids
    nothing, index = TaskAdapter(), zeros(BATCH)
    systems = {"none": tagi(model, fusion=False), "quarter": tagi(model, narrow=True), "full": tagi(model)}
    results = []

    def per_input(system: TagiModel | Backbone, rows: Tokens, adapter: TaskAdapter) -> float:
        return count_flops(lambda: system(rows, labels, adapter, index)) / BATCH

    with eager_attention(model.model):
        plain = per_input(model, inputs, nothing)
        for setting, length in INSTRUCTIONS.items():
            instruction = random_tokens(1, length, model.vocabulary_size, seed=2)
            prompt = random_tokens(BATCH, length + INPUT, model.vocabulary_size, seed=3)
            concatenated = per_input(model, prompt, nothing)
            encoding = count_flops(partial(model.read, instruction)) / PER_TASK
            total = {
                name: task_flops(system, instruction, partial(per_input, system, inputs))
                for name, system in systems.items()
            }
            for name, compares, ratio, at_most in (
                ("", "TAGI, no fusion / backbone on input + one encoding", total["none"] / (plain + encoding), 1.03),
                ("_fusion", "fusion / concatenated", (total["full"] - total["none"]) / concatenated, 0.09),
                ("_quarter", "fusion of d/4 / concatenated", (total["quarter"] - total["none"]) / concatenated, 0.025),
                ("_tagi", "TAGI / concatenated", total["full"] / concatenated, None),
            ):  # fmt: skip
                results.append(summarize(f"flops{name}_{setting}", f"{compares}, {setting}", [ratio], at_most))
    return results


@torch.no_grad()
def generation(size: str, repeats: int) -> list[Result]:
    """A task of 96 inputs, its preparation included, and the bare backbone, against the concatenated prompt."""
    model = backbone(size)
    system, results = tagi(model), []
    inputs = random_tokens(BATCH, INPUT, model.vocabulary_size, seed=0)
    index, nothing = zeros(BATCH), TaskAdapter()

    def knowing(instruction: Tokens) -> None:
        with system.merged(system.prepare(instruction)) as adapter:
            for _ in range(BATCHES):
                system.generate(inputs, adapter, index, EXACT_LENGTH)

    def plain(rows: Tokens) -> None:
        for _ in range(BATCHES):
            model.generate(rows, nothing, index, EXACT_LENGTH)

    for setting, at_most in (("def", 0.70), ("def+2pos", 0.40)):
        instruction = random_tokens(1, INSTRUCTIONS[setting], model.vocabulary_size, seed=2)
        prompt = random_tokens(BATCH, INSTRUCTIONS[setting] + INPUT, model.vocabulary_size, seed=3)
        times = in_turn([partial(knowing, instruction), partial(plain, prompt), partial(plain, inputs)], repeats)
        seconds = [median(row[side] for row in times) for side in range(3)]
        for name, title, side, bound in (
            ("generation", "TAGI", 0, at_most),
            ("floor", "backbone without instruction", 2, None),
        ):
            compares = f"{title} / concatenated, {BATCH * BATCHES} inputs with generation, {setting}"
            ratios = [row[side] / row[1] for row in times]
            results.append(summarize(f"{name}_{setting}", compares, ratios, bound, seconds=seconds))
    return results


@torch.no_grad()
def second_input(size: str, repeats: int) -> list[Result]:
    """One more input of a known task, merged, against the backbone without an instruction."""
    model, results = backbone(size), []
    instruction = random_tokens(1, INSTRUCTIONS["def"], model.vocabulary_size, seed=2)
    inputs, compares = random_tokens(1, INPUT, model.vocabulary_size, seed=0), "/ backbone without instruction"
    for name, narrow, at_most in (("full fusion", False, 1.15), ("fusion of d/4", True, 1.06)):
        system, plain = tagi(model, narrow=narrow), backbone(size)
        with system.merged(system.prepare(instruction)) as adapter:
            known = partial(system.generate, inputs, adapter, zeros(1), EXACT_LENGTH)
            unknown = partial(plain.generate, inputs, TaskAdapter(), zeros(1), EXACT_LENGTH)
            case = f"second_input_{'quarter' if narrow else 'full'}"
            results.append(versus(case, f"second input, merged, {name} {compares}", known, unknown, repeats, at_most))
    return results


@torch.no_grad()
def known_task(size: str, repeats: int) -> list[Result]:
    """Short answers to a batch of a known task, merging included as in `tagi predict`, against the backbone alone."""
    system, plain, results = tagi(backbone(size)), backbone(size), []
    instruction = random_tokens(1, INSTRUCTIONS["def"], plain.vocabulary_size, seed=2)
    prepared, short = system.prepare(instruction), GenerationConfig(max_new_tokens=SHORT, min_new_tokens=SHORT)

    def known(inputs: Tokens) -> None:
        with system.merged(prepared) as adapter:
            system.generate(inputs, adapter, zeros(len(inputs)), short)

    for rows in sorted({1, 8, BATCH}):
        inputs = random_tokens(rows, INPUT, plain.vocabulary_size, seed=0)
        bare = partial(plain.generate, inputs, TaskAdapter(), zeros(rows), short)
        compares = f"{SHORT} tokens to {rows} inputs of a known task / backbone without instruction"
        results.append(versus(f"known_task_{rows}", compares, partial(known, inputs), bare, repeats, 1.25))
    return results


@torch.no_grad()
def mixed_tasks(size: str, repeats: int) -> list[Result]:
    """Eight tasks in one batch against one, forward; merged weights belong to one task, so each side has its model."""
    many, one = tagi(backbone(size)), tagi(backbone(size))
    instructions = random_tokens(8, INSTRUCTIONS["def"], many.backbone.vocabulary_size, seed=2)
    inputs = random_tokens(BATCH, INPUT, many.backbone.vocabulary_size, seed=0)
    labels = random_tokens(BATCH, OUTPUT, many.backbone.vocabulary_size, seed=1).ids
    index = torch.arange(8).repeat_interleave(BATCH // 8)
    mixed = partial(many, inputs, labels, many.prepare(instructions), index)
    with one.merged(one.prepare(instructions.map(lambda rows: rows[:1]))) as adapter:
        merged = partial(one, inputs, labels, adapter, zeros(BATCH))
        compares = "forward of 8 tasks x 4 inputs, unmerged / 1 task x 32 inputs, merged"
        return [versus("mixed_tasks", compares, mixed, merged, repeats, 1.10)]


@torch.no_grad()
def preparation(size: str, repeats: int) -> list[Result]:
    """An instruction's adapter against one encoder pass over the instruction."""
    system, results = tagi(backbone(size)), []
    for setting, lora, whole in (("def", 1.10, 1.35), ("def+2pos", 1.04, 1.20)):
        instruction = random_tokens(1, INSTRUCTIONS[setting], system.backbone.vocabulary_size, seed=2)

        def lora_alone(instruction: Tokens = instruction) -> None:
            encoded = system.encode_instructions(instruction)
            system.hypernetwork(encoded.states, encoded.mask)  # type: ignore[misc]

        encoder, compares = partial(system.encode_instructions, instruction), "/ one encoder pass over the instruction"
        for name, title, side, at_most in (
            ("lora", "generating the LoRA", lora_alone, lora),
            ("prepare", "the whole prepared adapter", partial(system.prepare, instruction), whole),
        ):
            case = f"{name}_{setting}"
            results.append(versus(case, f"{title} {compares}, {setting}", side, encoder, repeats, at_most))
    return results

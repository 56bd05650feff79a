"""A distillation step against a full fine-tuning step on the same examples.

T tasks, n inputs of each, B = T n examples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones import Backbone
from tagi_lightning.bench.measure import Result, in_turn, summarize
from tagi_lightning.bench.shapes import backbone, random_tokens
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.caches.teacher_logits import TeacherCache, adapter_digests, example_keys
from tagi_lightning.costs.lengths import DEFINITION, INPUT, OUTPUT
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraBank, LoraWeights
from tagi_lightning.losses import (
    TopK,
    alignment_loss,
    lambda_ins,
    prediction_and_distillation_loss,
    prediction_loss,
)
from tagi_lightning.model import TagiConfig, TagiModel

TASKS, INPUTS = 4, 4
TEACHERS = 16
TOP_K = 64


@dataclass(frozen=True)
class Examples:
    """One batch for both sides.

    Attributes:
        instruction: Instructions [T, I].
        input: Bare inputs [B, S].
        prompt: Instruction and input concatenated [B, I + S].
        labels: Targets [B, O].
        task_index: Task of each example [B].
        category: Teacher of each task [T].
    """

    instruction: Tokens
    input: Tokens
    prompt: Tokens
    labels: Tensor
    task_index: Tensor
    category: Tensor

    @classmethod
    def draw(cls, vocabulary: int) -> Examples:
        """Draws random tokens at the lengths of real tasks."""
        instruction = random_tokens(TASKS, DEFINITION, vocabulary, seed=0)
        inputs = random_tokens(TASKS * INPUTS, INPUT, vocabulary, seed=1)
        index = torch.arange(TASKS).repeat_interleave(INPUTS)
        prompt = torch.cat([instruction.ids[index], inputs.ids], dim=1)
        labels = random_tokens(TASKS * INPUTS, OUTPUT, vocabulary, seed=2).ids
        return cls(instruction, inputs, Tokens(prompt, torch.ones_like(prompt)), labels, index, torch.arange(TASKS))


class Distilling:
    """Steps of eq. 6 with all three terms; the logits teacher runs, or is read from its cache."""

    def __init__(self, model: Backbone, examples: Examples, folder: Path) -> None:
        """Builds a student at the defaults of every piece, and a bank of untrained teachers."""
        self.examples = examples
        self.model = TagiModel(model, TagiConfig())
        self.bank = LoraBank(self.model.sites, self.model.config.lora, [str(name) for name in range(TEACHERS)])
        self.bank.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.trained_parameters().values(), lr=1e-4)
        self.instructions = InstructionStatesCache(self.model, 2**30)
        self.answers = TeacherCache(folder, TOP_K, 1.0, {"backbone": model.digest()})
        self.digests = adapter_digests(self.bank())

    @torch.no_grad()
    def teacher_logits(self, taught: LoraWeights, rows: Tensor) -> Tensor:
        """Returns the teacher's logits of examples `rows`."""
        own = self.examples
        prompt = own.prompt.map(lambda tensor: tensor[rows])
        logits: Tensor = self.model.backbone(prompt, own.labels[rows], TaskAdapter(lora=taught), own.task_index[rows])
        return logits

    def with_teacher(self) -> None:
        """Takes a step whose teacher and instruction encoder run."""
        taught = self.bank().index(self.examples.category)
        teacher = self.teacher_logits(taught, torch.arange(len(self.examples.labels)))
        self.step(self.model.encode_instructions(self.examples.instruction), taught, teacher)

    def cached(self) -> None:
        """Takes a step whose teacher's answers and instruction states are at hand."""
        own, taught = self.examples, self.bank().index(self.examples.category)
        adapters = [self.digests[category] for category in own.category[own.task_index].tolist()]
        keys = example_keys(own.prompt, own.labels, adapters)
        teacher, _ = self.answers.fill(keys, own.labels, partial(self.teacher_logits, taught))
        self.step(self.instructions.encode(own.instruction), taught, teacher)

    def step(self, instruction: InstructionStates, taught: LoraWeights, teacher: Tensor | TopK) -> None:
        """Takes a step of eq. 6."""
        own = self.examples
        self.optimizer.zero_grad()
        adapter = self.model.adapt(instruction)
        assert adapter.lora is not None
        logits = self.model(own.input, own.labels, adapter, own.task_index)
        pred, kl = prediction_and_distillation_loss(logits, teacher, own.labels)
        ins = alignment_loss(adapter.lora, taught, scale=100.0)
        loss = pred.mean() + 5.0 * kl.mean() + (lambda_ins(ins, "sigmoid") * ins).mean()
        loss.backward()
        self.optimizer.step()


def full_fine_tuning(model: nn.Module, examples: Examples) -> Callable[[], None]:
    """Returns a step that trains every weight of the backbone by cross entropy on (a;b)."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(examples.prompt, examples.labels, TaskAdapter(), examples.task_index)
        prediction_loss(logits, examples.labels).mean().backward()
        optimizer.step()

    return step


def distillation(size: str, repeats: int) -> list[Result]:
    """A distillation step, its teacher run or cached, against full fine-tuning on the same examples."""
    student = backbone(size)
    examples = Examples.draw(student.vocabulary_size)
    fine_tuning = full_fine_tuning(backbone(size), examples)
    with tempfile.TemporaryDirectory() as folder:
        distilling = Distilling(student, examples, Path(folder))
        times = in_turn([distilling.with_teacher, distilling.cached, fine_tuning], repeats)
    seconds = dict(zip(("with_teacher", "cached", "fine_tuning"), map(median, zip(*times, strict=True)), strict=True))
    compares = f"{TASKS} tasks x {INPUTS}, eq. 6 {{}} / full fine-tuning on (a;b)"
    return [
        summarize(case, compares.format(how), [row[side] / row[2] for row in times], bound, size=size, seconds=seconds)
        for side, case, how, bound in (
            (0, "distill_with_teacher", "with the teacher's forward pass", 0.97),
            (1, "distill_cached", "with cached teacher and instruction states", 0.58),
        )
    ]

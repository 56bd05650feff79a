"""The systems of a comparison: what each reads, and what adapts the backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.caches.adapters import AdapterCache
from tagi_lightning.costs.flops import count_flops, eager_attention
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.task import DataKind, Task
from tagi_lightning.evaluation import sources
from tagi_lightning.evaluation.controls import Controls
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.evaluation.sources import Adapt, AdapterSource
from tagi_lightning.inference.answers import Answers, answer
from tagi_lightning.model import TagiModel


@dataclass(frozen=True)
class SystemSpec:
    """One system of a comparison.

    Attributes:
        reads: The bare input, instruction and input concatenated, or what the trained model was trained to read.
        adapter: What gives each batch its adapters.
        data: Which instances it answers.
        title: What tables call it.
    """

    reads: Literal["input", "prompt", "trained"]
    adapter: AdapterSource
    data: DataKind
    title: str


SYSTEMS: dict[str, SystemSpec] = {
    "no_instruction": SystemSpec("input", sources.NOTHING, "test", "backbone, no instruction"),
    "wrong_instruction": SystemSpec(
        "trained", sources.GENERATED, "wrong_instruction", "TAGI, another task's instruction"
    ),
    "wrong_adapter": SystemSpec("trained", sources.OTHER_GENERATED, "test", "TAGI, another task's LoRA"),
    "mean_adapter": SystemSpec("trained", sources.MEAN_GENERATED, "test", "TAGI, mean LoRA of the training tasks"),
    "paraphrased": SystemSpec("trained", sources.GENERATED, "paraphrased", "TAGI, instruction in other words"),
    "mean_teachers": SystemSpec("prompt", sources.MEAN_TAUGHT, "test", "mean of the teachers"),
    "nearest_teacher": SystemSpec(
        "prompt", sources.NEAREST_TAUGHT, "test", "teacher of the most similar training instruction"
    ),
    "concatenated": SystemSpec("prompt", sources.NOTHING, "test", "backbone, instruction concatenated"),
    "tagi": SystemSpec("trained", sources.GENERATED, "test", "TAGI"),
    "lora_only": SystemSpec("trained", sources.LORA_ALONE, "test", "TAGI, its LoRA alone, as PEFT holds it"),
    "ensemble": SystemSpec("trained", sources.GENERATED, "each_demonstration", "ensemble over demonstrations"),
    "full_ft": SystemSpec("prompt", sources.NOTHING, "few_shot", "backbone, trained on demonstrations"),
    "teachers_backbone": SystemSpec(
        "prompt", sources.NOTHING, "held_out", "held out: backbone, instruction concatenated"
    ),
    "teachers": SystemSpec("prompt", sources.TAUGHT, "held_out", "held out: the categories' teachers"),
}
"""Systems that run a model, by name. `teachers` is the control by the teacher of the task itself: one a category."""

HEURISTICS = {
    "copy_input": "copy the input",
    "copy_demonstration": "copy the first demonstration's output",
}
"""Systems without a model, by name, with their titles."""


class SystemRunner:
    """Runs one system over batches; each instruction is read once, and a batch of one task has its LoRA merged."""

    def __init__(
        self,
        spec: SystemSpec,
        model: TagiModel,
        controls: Controls | None = None,
        adapt: Adapt | None = None,
    ) -> None:
        """Takes what the system is made of.

        Args:
            spec: The system.
            model: Backbone, and the hypernetwork where the system generates adapters.
            controls: Teachers, and what is computed once for all tasks, where the system uses any.
            adapt: Turns instructions into adapters; None for a cache of prepared adapters.
        """
        self.spec = spec
        self.model = model
        self.controls = controls or Controls(model)
        self.adapt = adapt or AdapterCache(model)
        self._tasks: tuple[str, ...] = ()
        self._adapter = TaskAdapter()

    def inputs(self, batch: TaskBatch) -> Tokens:
        """Returns what the system reads.

        Raises:
            ValueError: If the batch lacks the concatenated prompt.
        """
        if self.spec.reads == "trained":
            return self.model.inputs(batch)
        inputs = batch.input if self.spec.reads == "input" else batch.prompt
        if inputs is None:
            raise ValueError("this system reads instruction and input concatenated: set data.with_prompt=true")
        return inputs

    def condition(self, batch: TaskBatch) -> tuple[Tokens, TaskAdapter]:
        """Returns what the backbone reads, and the adapters of the batch's tasks."""
        inputs = self.inputs(batch)
        if not batch.tasks or batch.tasks != self._tasks:
            self._adapter = self.spec.adapter.make(self.controls, self.adapt, batch)
            self._tasks = batch.tasks
        return inputs, self._adapter

    @torch.no_grad()
    def answer(self, batch: TaskBatch, config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> Answers:
        """Answers one batch: ranks its choices where it has any, generates elsewhere."""
        inputs, adapter = self.condition(batch)
        merged = adapter.lora is not None and adapter.num_tasks == 1
        with self.model.merged(adapter) if merged else nullcontext(adapter) as rest:  # type: ignore[arg-type]
            return answer(self.model, batch, inputs, rest, config, tokenizer)

    @torch.no_grad()
    def forward(self, batch: TaskBatch) -> Tensor:
        """Returns teacher-forced logits over the references [B, O, V]."""
        inputs, adapter = self.condition(batch)
        logits: Tensor = self.model(inputs, batch.labels, adapter, batch.task_index)
        return logits


def to_predictions(
    batch: TaskBatch, answers: Answers, tokenizer: PreTrainedTokenizerBase, find_task: Callable[[str], Task]
) -> list[Prediction]:
    """Returns answers as rows to be scored.

    Args:
        batch: What was answered.
        answers: The answers.
        tokenizer: Decodes the instructions, whose digests the rows carry.
        find_task: Returns a task by its name.
    """
    instructions = tokenizer.batch_decode(batch.instruction.ids, skip_special_tokens=True)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in instructions]
    tasks = [find_task(name) for name in batch.tasks]
    golds = batch.gold.tolist() if batch.gold is not None else []
    rows = []
    for place, row in enumerate(batch.task_index.tolist()):
        ranked: dict[str, Any] = {}
        if answers.logprob_sum and batch.choice_texts[place]:
            sums, means = answers.logprob_sum[place], answers.logprob_mean[place]
            ranked = {"choices": batch.choice_texts[place], "logprob_sum": sums, "logprob_mean": means}
            ranked["gold"] = golds[place]
        rows.append(
            Prediction(
                id=batch.ids[place],
                task=tasks[row].name,
                category=tasks[row].category,
                dataset=tasks[row].dataset,
                template=tasks[row].template,
                instruction_sha256=digests[row],
                prediction=answers.texts[place],
                references=batch.references[place],
                **ranked,
            )
        )
    return rows


def measure_flops(
    spec: SystemSpec, model: TagiModel, batches: Iterable[TaskBatch], controls: Controls | None = None
) -> int:
    """Counts the operations of a system over `batches` with outputs of the references' length, by shapes alone.

    Attention runs in its plain form on tensors without storage, so that nothing is computed and everything is counted,
    except what is computed once for all tasks: a mean adapter, the search for similar instructions.

    Args:
        spec: The system.
        model: Its backbone and hypernetwork.
        batches: What it reads; each run of batches with the same tasks has its instructions encoded once.
        controls: Teachers, and what is computed once for all tasks, where the system uses any.
    """
    total = 0
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    runner = SystemRunner(spec, model, controls, adapt=lambda tokens: model.backbone.prepare(model.adapt(tokens)))
    with eager_attention(model.backbone.model):
        for batch in batches:
            with fake:
                shapes = batch.map(fake.from_tensor)
                total += count_flops(lambda shapes=shapes: runner.forward(shapes))  # type: ignore[misc]
    return total

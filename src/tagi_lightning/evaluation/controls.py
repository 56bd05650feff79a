"""What a system puts in the place of a task's adapter: its own, none, another's, a mean, or a teacher's.

A system's source of adapters is one of the functions at the end: from what is computed once, a function that turns
instructions into adapters, and a batch of T tasks, to the adapters of the T tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones.base import Backbone
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.evaluation.mean_adapter import MeanLora, UpdateMean, mean_prefix
from tagi_lightning.lora import LoraBank, LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.prefix import PrefixWeights

PROGRESS_SECONDS = 10.0
"""Least time between two lines of progress."""


class Instructions(Protocol):
    """The instructions that controls ask the data for, in the phrasing that evaluation uses."""

    def of_split(self, split: Literal["train", "test"]) -> Iterator[TaskBatch]:
        """Yields batches of all tasks of a split, without examples."""

    def wrong(self, tasks: Sequence[str]) -> Tokens:
        """Returns the instructions of other test tasks that stand in for those of `tasks` [T, I]."""


class MeanGenerated(NamedTuple):
    """The mean of what a hypernetwork writes; what it does not write is None."""

    lora: MeanLora | None
    prefix: PrefixWeights | None


@dataclass(frozen=True)
class NearestInstruction:
    """The most similar training instruction of a test task.

    Attributes:
        task: Name of the training task.
        category: Its category's place in the bank of teachers.
        cosine: Their similarity, -1 to 1.
    """

    task: str
    category: int
    cosine: float


def pool_instructions(backbone: Backbone, instruction: Tokens) -> Tensor:
    """Returns the mean of the frozen backbone's states over each instruction's own tokens [T, d], in float32."""
    states = backbone.read(instruction).states.float()
    # a decoder-only model's BOS would outweigh all else
    states = states[:, states.shape[1] - instruction.ids.shape[1] :]
    mask = instruction.mask[..., None]
    return (states * mask).sum(1) / mask.sum(1)


def check_generates(model: TagiModel) -> None:
    """Refuses a model whose generated adapter, if it has any, is the same for all instructions.

    Raises:
        ValueError: If it is.
    """
    if model.hypernetwork is None or not model.hypernetwork.reads_instruction:
        raise ValueError(
            "this model has one adapter, or none, for all instructions (hypernetwork.generator=constant or "
            "enabled=false): another task's adapter and the mean of all would be the system itself; leave out "
            "mean_adapter and wrong_adapter"
        )


class Controls:
    """What is computed once for all tasks, when it is first asked for, and kept."""

    def __init__(
        self,
        model: TagiModel,
        bank: LoraBank | None = None,
        instructions: Instructions | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        """Takes what the computations need.

        Args:
            model: Generates the adapters.
            bank: The teachers, for systems that use them.
            instructions: Those of the task set, for means, other tasks' adapters and similarity.
            backbone: The frozen backbone by which instructions are compared; None for the model's.
        """
        self.model, self.bank, self.backbone = model, bank, backbone or model.backbone
        self._instructions = instructions

    @property
    def instructions(self) -> Instructions:
        """The task set's instructions.

        Raises:
            ValueError: If there are none.
        """
        if self._instructions is None:
            raise ValueError("this system needs the instructions of the whole task set")
        return self._instructions

    def teachers(self, rows: Tensor | None = None) -> LoraWeights:
        """Returns all K teachers, or those of `rows` [T].

        Raises:
            ValueError: If there is no bank.
        """
        if self.bank is None:
            raise ValueError("this system needs the teachers")
        lora: LoraWeights = self.bank()
        return lora if rows is None else lora.index(rows)

    @cached_property
    def mean_generated(self) -> MeanGenerated:
        """The mean of what the hypernetwork writes for the training instructions, at the adapters' own rank.

        Of prefixes it is the mean of keys and of values: those of all instructions start at the same vectors.

        Raises:
            ValueError: If the model generates nothing that depends on the instruction, or there is none to train on.
        """
        check_generates(self.model)
        mean, prefixes = UpdateMean(), []
        with torch.no_grad(), _disable_current_modes():
            for batch in self._read("train"):
                encoded = self.model.encode_instructions(batch.instruction, memory=False)
                lora, prefix = self.model.hypernetwork(encoded.states, encoded.mask)  # type: ignore[misc]
                if lora is not None:
                    mean.add(lora)
                if prefix is not None:
                    prefixes.append(prefix)
            if not mean.adapters and not prefixes:
                raise ValueError("there is no training instruction to take the mean adapter of")
            return MeanGenerated(
                mean.truncate(self.model.config.lora.rank) if mean.adapters else None,
                mean_prefix(prefixes) if prefixes else None,
            )

    @cached_property
    def mean_taught(self) -> MeanLora:
        """The mean of the teachers, at their own rank."""
        mean = UpdateMean()
        with torch.no_grad(), _disable_current_modes():
            lora = self.teachers()
            mean.add(lora)
            return mean.truncate(lora.rank)

    @cached_property
    def nearest(self) -> dict[str, NearestInstruction]:
        """The most similar training instruction of each test task.

        Similarity is the cosine of mean-pooled states of the frozen backbone, less their mean over the training
        instructions, which all instructions have in common and would make all look alike. Of equals the first counts.
        """
        with torch.no_grad(), _disable_current_modes():
            training = [(batch, pool_instructions(self.backbone, batch.instruction)) for batch in self._read("train")]
            names = [name for batch, _ in training for name in batch.tasks]
            categories = [category for batch, _ in training for category in batch.category.tolist()]
            pooled = torch.cat([states for _, states in training])
            centre, found = pooled.mean(0), {}
            directions = F.normalize(pooled - centre, dim=-1)
            for batch in self._read("test"):
                states = pool_instructions(self.backbone, batch.instruction)
                cosines, places = (F.normalize(states - centre, dim=-1) @ directions.mT).max(-1)
                for task, cosine, place in zip(batch.tasks, cosines.tolist(), places.tolist(), strict=True):
                    found[task] = NearestInstruction(names[place], categories[place], cosine)
            return found

    def facts(self, source: Source) -> dict[str, Any]:
        """Returns what is worth knowing about what a source computed once, for its metrics; nothing elsewhere."""
        if source is nearest_taught:
            return {"nearest": {task: [found.task, round(found.cosine, 4)] for task, found in self.nearest.items()}}
        mean = None
        if source is mean_generated:
            mean = self.mean_generated.lora
        elif source is mean_taught:
            mean = self.mean_taught
        if mean is None:
            return {}
        return {"mean_of": mean.adapters, "kept": round(mean.kept, 4), "agreement": round(mean.agreement, 4)}

    def _read(self, split: Literal["train", "test"]) -> Iterator[TaskBatch]:
        """Yields the instructions of a split on the model's device, telling now and then how far it is."""
        done, told = 0, time.monotonic()
        for batch in self.instructions.of_split(split):
            yield batch.to(self.backbone.model.device)
            done += len(batch.tasks)
            if time.monotonic() - told > PROGRESS_SECONDS:
                print(f"read the instructions of {done} {split} tasks", flush=True)
                told = time.monotonic()


Adapt = Callable[[Tokens], TaskAdapter]
Source = Callable[[Controls, Adapt, TaskBatch], TaskAdapter]


def nothing(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Leaves the backbone as it is."""
    return TaskAdapter()


def generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns what the batch's instructions give."""
    return adapt(controls.model.conditions(batch))


def lora_alone(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the LoRA of what the batch's instructions give, which is what PEFT holds of it."""
    return TaskAdapter(generated(controls, adapt, batch).lora)


def other_generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns another task's LoRA with fusion and memory of the right instruction, which isolates the hypernetwork."""
    wrong = adapt(controls.instructions.wrong(batch.tasks).to(batch.task_index.device))
    return _in_place(controls.model, batch, wrong.lora, wrong.prefix)


def mean_generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the mean LoRA of the training instructions with fusion and memory of the right instruction."""
    mean = controls.mean_generated
    lora = _repeat(mean.lora.lora, batch) if mean.lora is not None else None
    prefix = mean.prefix.map(partial(_expand, batch=batch)) if mean.prefix is not None else None
    return _in_place(controls.model, batch, lora, prefix)


def taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the teachers of the tasks' own categories."""
    return TaskAdapter(controls.teachers(batch.category))


def mean_taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the mean of all teachers."""
    return TaskAdapter(_repeat(controls.mean_taught.lora, batch))


def nearest_taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the teacher of the most similar training instruction."""
    rows = [controls.nearest[task].category for task in batch.tasks]
    return TaskAdapter(controls.teachers(torch.tensor(rows, device=batch.category.device)))


def _in_place(
    model: TagiModel, batch: TaskBatch, lora: LoraWeights | None, prefix: PrefixWeights | None
) -> TaskAdapter:
    """Returns fusion and memory of the batch's instructions under a LoRA and a prefix that are not theirs.

    They are computed anew: keys, values and states that were prepared before hold the instruction's own LoRA.
    """
    with torch.no_grad(), model.backbone.lock:
        return model.backbone.prepare(model.conditioned(model.encode_instructions(batch.instruction), lora, prefix))


def _expand(tensor: Tensor, batch: TaskBatch) -> Tensor:
    """Returns one task's tensor [1, ...] as that of all T tasks of a batch, without copies."""
    return tensor.to(batch.task_index.device).expand(len(batch.instruction), *tensor.shape[1:])


def _repeat(lora: LoraWeights, batch: TaskBatch) -> LoraWeights:
    a, b = ({site: _expand(factor, batch) for site, factor in part.items()} for part in (lora.a, lora.b))
    return replace(lora, a=a, b=b)


ONCE_FOR_ALL_TASKS: dict[Source, str] = {
    mean_generated: "the mean of all training instructions' adapters",
    mean_taught: "the mean of the teachers",
    nearest_taught: "the search for the most similar training instruction",
}
"""What a source computes once for all tasks, which no count of operations and no time includes."""

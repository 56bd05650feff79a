"""What controls compute once for all tasks: mean adapters, and the most similar training instructions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

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

    def _read(self, split: Literal["train", "test"]) -> Iterator[TaskBatch]:
        """Yields the instructions of a split on the model's device, telling now and then how far it is."""
        done, told = 0, time.monotonic()
        for batch in self.instructions.of_split(split):
            yield batch.to(self.backbone.model.device)
            done += len(batch.tasks)
            if time.monotonic() - told > PROGRESS_SECONDS:
                print(f"read the instructions of {done} {split} tasks", flush=True)
                told = time.monotonic()

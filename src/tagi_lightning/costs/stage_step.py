"""One step of each stage at any size, on real tensors or on tensors without storage.

Shapes: B examples, T tasks, O output tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import BackboneConfig, build_backbone
from tagi_lightning.backbones.loading import set_execution, t5_config
from tagi_lightning.backbones.quantization import quantize_linears
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraBank, LoraConfig, LoraWeights
from tagi_lightning.losses import alignment_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.run_layout import EVALUATE, STAGES


@dataclass(frozen=True)
class Workload:
    """What one step of a stage reads, all tokens being real ones.

    Attributes:
        tasks: Distinct instructions T.
        examples: Examples B, in T equal runs.
        instruction: Tokens of an instruction.
        input: Tokens of an input.
        output: Tokens of a target.
        rank: Rank of the adapters.
        optimizer: `adamw`, `adafactor` or, where nothing trains, `none`.
        accumulate: Batches to one step of the optimizer.
    """

    tasks: int
    examples: int
    instruction: int
    input: int
    output: int
    rank: int = 32
    optimizer: str = "adamw"
    accumulate: int = 1

    def share(self, devices: int) -> Workload:
        """Returns what the fullest of `devices` reads of each batch: every device has at least one example."""
        return replace(self, tasks=-(-self.tasks // devices), examples=-(-self.examples // devices))


@dataclass(frozen=True)
class Execution:
    """How a stage runs.

    Attributes:
        dtype: Type the frozen weights are stored in.
        quantization: `int8` or None.
        gradient_checkpointing: Whether blocks are computed again in the backward pass.
        mixed: Whether products run in bfloat16 (the trainer's bf16-mixed).
        teachers: Adapters in the bank K.
        vocabulary: Tokens V.
    """

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    quantization: Literal["int8"] | None = None
    gradient_checkpointing: bool = False
    mixed: bool = True
    teachers: int = 60
    vocabulary: int = 32128


class _Runs(TaskAdapter):
    """An adapter of examples that are known to stand in equal runs, which tensors without storage cannot tell."""

    def route(self, task_index: Tensor | None) -> _Runs:
        return self.in_runs(True)


class StageStep(nn.Module):
    """The modules of one stage and its step over a workload."""

    def __init__(self, stage: str, size: str, work: Workload, execution: Execution) -> None:
        """Builds `stage` at a built-in `size`, with random weights.

        Raises:
            ValueError: If the stage is unknown.
        """
        super().__init__()
        if stage not in (*STAGES, EVALUATE):
            raise ValueError(f"unknown stage {stage!r}; choose from {', '.join((*STAGES, EVALUATE))}")
        self.stage, self.work, self.execution = stage, work, execution
        if stage == "pretrain-backbone":
            self.backbone = build_backbone(t5_config(size, execution.vocabulary), size)
        else:
            with _default_dtype(getattr(torch, execution.dtype)):  # tensors without storage cannot change theirs later
                self.backbone = build_backbone(t5_config(size, execution.vocabulary), size)
            self.backbone.freeze()
            if execution.quantization:
                quantize_linears(self.backbone.model)
        set_execution(self.backbone, BackboneConfig(size, gradient_checkpointing=execution.gradient_checkpointing))
        lora = LoraConfig(work.rank)
        self.model = None if stage in STAGES[:2] else TagiModel(self.backbone, TagiConfig(lora))
        self.bank = None
        if stage in ("teachers", "align", "distill"):
            self.bank = LoraBank(self.backbone.sites(lora), lora, map(str, range(execution.teachers)))
            self.bank.requires_grad_(stage == "teachers")
        if stage == "align":
            assert self.model is not None
            assert self.model.fusion is not None
            self.model.fusion.requires_grad_(False)
        if stage == "evaluate":
            self.requires_grad_(False)

    def forward(self) -> Tensor:
        """Returns the loss of one batch; of `evaluate` the logits over the references."""
        work = self.work
        with torch.autocast("cpu", torch.bfloat16, enabled=self.execution.mixed):
            if self.model is None:
                taught = _Runs(self._taught() if self.bank is not None else None)
                return self._loss(self._logits(work.instruction + work.input, taught))
            adapter = _Runs(**vars(self.model.adapt(_tokens(work.tasks, work.instruction))))
            if self.stage == "align":
                return self._alignment(adapter)
            logits = self._logits(work.input, adapter)
            if self.stage == "evaluate":
                return logits
            if self.bank is None:
                return self._loss(logits)
            with torch.no_grad():
                teacher = self._logits(work.instruction + work.input, _Runs(self._taught()))
            return self._loss(logits, teacher) + self._alignment(adapter)

    def _logits(self, length: int, adapter: TaskAdapter) -> Tensor:
        """Returns logits over the targets [B, O, V] for inputs of `length` tokens."""
        work = self.work
        tasks = torch.arange(work.tasks).repeat_interleave(-(-work.examples // work.tasks))[: work.examples]
        labels = torch.zeros(work.examples, work.output, dtype=torch.long)
        logits: Tensor = self.backbone(_tokens(work.examples, length), labels, adapter, tasks)
        return logits

    def _loss(self, logits: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Returns cross entropy, plus KL(teacher || student) where a teacher is given, over targets without padding.

        Not by `losses`, which looks at the labels for padding: a tensor without storage has nothing to look at.
        """
        log_q = logits.float().flatten(0, 1).log_softmax(-1)
        loss = F.nll_loss(log_q, torch.zeros(len(log_q), dtype=torch.long))
        if teacher is not None:
            log_p = teacher.float().flatten(0, 1).log_softmax(-1)
            loss = loss + F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return loss

    def _taught(self) -> LoraWeights:
        """Returns the adapters of the batch's tasks, one teacher each where there are enough."""
        assert self.bank is not None
        # a bank asked for all its adapters in order looks at the numbers, which have no storage here
        whole = self.work.tasks == self.execution.teachers
        weights: LoraWeights = self.bank(None if whole else torch.arange(self.work.tasks) % self.execution.teachers)
        return weights

    def _alignment(self, adapter: TaskAdapter) -> Tensor:
        assert adapter.lora is not None
        return alignment_loss(adapter.lora, self._taught()).mean()

    def temporary_bytes(self) -> int:
        """Returns the bytes of two float32 tensors [B, O, V], which pass by at the start of the backward pass."""
        if self.stage in ("align", "evaluate"):
            return 0
        return 2 * 4 * self.work.examples * self.work.output * self.backbone.vocabulary_size

    def cache_bytes(self) -> int:
        """Returns the bytes of all keys and values that decoding a batch keeps."""
        work, config = self.work, self.backbone.model.config
        tokens = work.examples * (work.input + work.output) + work.tasks * work.instruction
        fusion = config.num_layers * work.tasks * work.instruction * (4 if self.model is not None else 0)
        per_token = 2 * config.num_heads * config.d_kv
        # the fusion's weights, and with them its keys, are float32
        return per_token * (config.num_layers * tokens * (2 if self.execution.dtype == "bfloat16" else 4) + fusion)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tokens(rows: int, length: int) -> Tokens:
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, -1] = 0  # rows of unequal length need masks, and these are kept for the backward pass
    return Tokens(ids, mask)

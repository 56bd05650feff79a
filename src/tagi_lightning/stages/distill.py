"""Stage distill: L_pred + lambda_1 L_kl + lambda_2 L_ins (paper section 5, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import BackboneConfig, GenerationConfig
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.lora import LoraWeights
from tagi_lightning.losses import Lambda2, distillation_loss, lambda_ins, prediction_loss
from tagi_lightning.model import TagiConfig
from tagi_lightning.stages.align import AlignmentConfig, check_categories, load_run_teachers
from tagi_lightning.stages.base import MODEL, OptimizerConfig
from tagi_lightning.stages.tagi import TagiStage


@dataclass(frozen=True)
class DistillationConfig:
    """Weights of the loss terms; a term with weight 0 is left out and not computed."""

    weight_pred: float = 1.0
    """Weight of L_pred."""
    lambda1: float = 5.0
    """Weight of L_kl (paper: 5)."""
    lambda2: Lambda2 = "sigmoid"
    """Weight of L_ins: a number, or the paper's sigmoid(L_ins)."""
    detach_lambda2: bool = False
    """Whether sigmoid(L_ins) is a constant for the gradient."""
    temperature: float = 1.0
    """Softens both distributions of L_kl (1 in eq. 5)."""

    def __post_init__(self) -> None:
        if not (self.weight_pred or self.lambda1 or self.lambda2):
            raise ValueError("loss.weight_pred, loss.lambda1 and loss.lambda2 are all 0: nothing would be trained")
        if min(self.weight_pred, self.lambda1) < 0 or (self.lambda2 != "sigmoid" and float(self.lambda2) < 0):
            raise ValueError("loss.weight_pred, loss.lambda1 and loss.lambda2 must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature must be positive, got {self.temperature}")


class Distillation(TagiStage):
    """Trains hypernetwork and fusion by prediction, distillation and alignment.

    The logits teacher is eq. 5's: the same frozen backbone reading instruction and input, under the LoRA of the
    task's category.
    """

    stage_name = "distill"
    previous: tuple[str, ...] = ("align", "pretrain")
    monitor = "val/rougeL"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        tagi: TagiConfig = TagiConfig(),  # noqa: B008
        loss: DistillationConfig = DistillationConfig(),
        alignment: AlignmentConfig = AlignmentConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008
        teachers: str = "auto",
        init_from: str = "auto",
    ) -> None:
        """Takes the settings (Table 6, Base: AdamW, lr 1e-4, 20,000 steps, batch 8 x 2).

        Args:
            run: Run folder.
            backbone: The frozen language model.
            tagi: Adapter, hypernetwork, fusion and memory.
            loss: Weights of the loss terms.
            alignment: How adapters are compared in L_ins.
            optimizer: Optimizer and schedule.
            generation: How validation decodes.
            teachers: auto for this run's teachers, none for the bare backbone as logits teacher, or a folder.
            init_from: auto for this run's aligned or pretrained hypernetwork, none, or a model folder.
        """
        super().__init__(run, backbone, tagi, optimizer, generation, init_from)
        self.loss_config = loss
        self.alignment = alignment
        self.teachers = teachers
        if not self.aligns:  # nothing of an ablation of alignment has passed through align
            self.previous = ("pretrain",)

    @property
    def aligns(self) -> bool:
        """Whether L_ins is part of the loss."""
        return self.loss_config.lambda2 != 0 and self.tagi_config.hypernetwork.enabled and self.teachers != "none"

    def build(self) -> None:
        """Loads the teachers besides the model."""
        super().build()
        self.bank = None
        if self.teachers != "none" and (self.aligns or self.loss_config.lambda1):
            self.bank = load_run_teachers(self.run, self.teachers, self.backbone, self.tagi_config.lora)
            check_categories(self.bank, self.trainer.datamodule.categories)  # type: ignore[attr-defined]

    @torch.no_grad()
    def teacher_logits(self, batch: TaskBatch, taught: LoraWeights | None) -> Tensor:
        """Returns the logits teacher's logits over the targets [B, O, V], reading (a;b)."""
        if batch.prompt is None:
            raise ValueError("the logits teacher reads instruction and input concatenated: set data.with_prompt=true")
        logits: Tensor = self.backbone(batch.prompt, batch.labels, TaskAdapter(lora=taught), batch.task_index)
        return logits

    def loss_terms(self, batch: TaskBatch, adapter: TaskAdapter) -> dict[str, Tensor]:
        """Returns the weighted terms of eq. 6 as means over the batch's examples, by name."""
        config = self.loss_config
        logits = self.model(batch.input, batch.labels, adapter, batch.task_index)
        taught = self.bank().index(batch.category) if self.bank is not None else None
        terms = {}
        if config.weight_pred:
            terms["pred"] = config.weight_pred * prediction_loss(logits, batch.labels).mean()
        if config.lambda1:
            teacher = self.teacher_logits(batch, taught)
            losses = distillation_loss(logits, teacher, batch.labels, config.temperature)
            terms["kl"] = config.lambda1 * losses.mean()
        if self.aligns:
            assert adapter.lora is not None
            assert taught is not None
            per_task = self.alignment.loss(adapter.lora, taught)
            weight = lambda_ins(per_task, config.lambda2, config.detach_lambda2)
            examples = torch.bincount(batch.task_index, minlength=len(per_task)) / len(batch)
            terms["ins"] = (weight * per_task * examples).sum()
            self.log("train/lambda_ins", weight.detach().mean(), batch_size=len(batch))
            self.log("train/loss_ins_raw", per_task.detach().mean(), batch_size=len(batch))
        return terms

    def save(self, folder: Path) -> None:
        """Writes the model, and points RUN/model to it: the run's finished hypernetwork."""
        super().save(folder)
        link = self.run / MODEL
        link.unlink(missing_ok=True)
        link.symlink_to(folder.relative_to(self.run), target_is_directory=True)

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns eq. 6 over one batch."""
        adapter = self.model.adapt(batch.instruction)
        terms = self.loss_terms(batch, adapter)
        loss = torch.stack(list(terms.values())).sum()
        self.log_loss("loss", loss, len(batch))
        for name, term in terms.items():
            self.log_loss(f"loss_{name}", term, len(batch))
        if self.should_log():
            self.log_adapter(adapter, len(batch))
            self.log_gradient_norms(terms, len(batch))
        return loss

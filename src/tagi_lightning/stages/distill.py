"""Stage distill: L_pred + lambda_1 L_kl + lambda_2 L_ins (paper section 5, eq. 6)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import Backbone, BackboneConfig, GenerationConfig
from tagi_lightning.caches.teacher_logits import TeacherCache, adapter_digests, example_keys
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.ranges import check_range
from tagi_lightning.lora import LoraWeights
from tagi_lightning.losses import (
    Lambda2,
    TopK,
    lambda_ins,
    prediction_and_distillation_loss,
    prediction_loss,
)
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.stages.align import AlignmentConfig, check_categories, load_run_teachers
from tagi_lightning.stages.base import OptimizerConfig, resolve_backbone
from tagi_lightning.stages.logits_teacher import load_teacher_folder
from tagi_lightning.stages.tagi import TagiStage
from tagi_lightning.storage.run_layout import MODEL

CATEGORY, BACKBONE = "category", "backbone"
"""Logits teachers that are no folder: eq. 5's, and the bare backbone."""

TEACHERS = "teachers"
"""Folder of the teacher caches, beside the token caches."""


@dataclass(frozen=True)
class TeacherCacheConfig:
    """The logits teacher's answers on disk: an example that was seen before costs no forward pass of the teacher."""

    enabled: bool = False
    """Whether L_kl follows the cached answers, k tokens and the rest, from the first epoch on; otherwise the exact
    distribution, computed at every step."""
    top_k: int = 64
    """Tokens kept at each target token; the others share one bucket."""
    folder: str | None = None
    """Where the files lie; null for `teachers` beside the data's token caches, which all runs on that data share."""

    def __post_init__(self) -> None:
        check_range({"loss.teacher_cache.top_k": self.top_k}, least=1)


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
    teacher_cache: TeacherCacheConfig = field(default_factory=TeacherCacheConfig)
    """Answers of the logits teacher kept on disk."""

    def __post_init__(self) -> None:
        if not (self.weight_pred or self.lambda1 or self.lambda2):
            raise ValueError("loss.weight_pred, loss.lambda1 and loss.lambda2 are all 0: nothing would be trained")
        lambda2 = None if self.lambda2 == "sigmoid" else self.lambda2
        weights = {"weight_pred": self.weight_pred, "lambda1": self.lambda1, "lambda2": lambda2}
        check_range({f"loss.{name}": weight for name, weight in weights.items()}, least=0)
        check_range({"loss.temperature": self.temperature}, above=0)


class Distillation(TagiStage):
    """Trains hypernetwork and fusion by prediction, distillation and alignment.

    The logits teacher is eq. 5's: the same frozen backbone reading instruction and input, under the LoRA of the
    task's category. Where weights of the backbone train, the teacher is a frozen copy of it.
    """

    stage_name = "distill"
    previous = ("align", "pretrain")
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
        logits_teacher: str = CATEGORY,
        init_from: str = "auto",
        instruction_cache_mb: int = 1024,
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
            teachers: auto for this run's teachers, a folder, or none: without L_ins, and with the bare backbone as
                logits teacher.
            logits_teacher: Whose distribution L_kl follows, reading instruction and input concatenated: category for
                the backbone under the category's LoRA (eq. 5), backbone for the bare one, or a folder: another
                system trained on this backbone (Tk-Instruct, Metatrain), or a Hugging Face model of the same
                vocabulary.
            init_from: align or pretrain for this run's aligned or pretrained hypernetwork, auto for the former where it
                is there and L_ins part of the loss, else the latter; none; or a model folder.
            instruction_cache_mb: Memory for the frozen backbone's states over instructions, each encoded once; 0 for
                none, which a backbone needs that trains and reads instructions.
        """
        super().__init__(run, backbone, tagi, optimizer, generation, init_from, instruction_cache_mb)
        self.loss_config = loss
        self.alignment = alignment
        self.teachers = teachers
        self.logits_teacher = logits_teacher
        self.teacher_cache: TeacherCache | None = None
        if not self.aligns and loss.lambda2 and not (loss.weight_pred or loss.lambda1):
            raise ValueError(
                "the loss is L_ins alone, and there is none: it compares a generated LoRA "
                "(hypernetwork.writes) with the teachers' (teachers=none); set loss.weight_pred or loss.lambda1"
            )

    @property
    def automatic(self) -> tuple[str, ...]:
        """As elsewhere, but without `align` where L_ins is off: an ablation of alignment has passed through none."""
        return self.previous if self.aligns else ("pretrain",)

    @property
    def aligns(self) -> bool:
        """Whether L_ins is part of the loss."""
        return self.loss_config.lambda2 != 0 and self.tagi_config.generates_lora and self.teachers != "none"

    @property
    def follows_categories(self) -> bool:
        """Whether L_kl follows the categories' LoRA."""
        return bool(self.loss_config.lambda1) and self.logits_teacher == CATEGORY and self.teachers != "none"

    def build(self) -> None:
        """Loads the teachers besides the model, and opens the cache of their answers."""
        super().build()
        self.bank = None
        if self.aligns or self.follows_categories:
            self.bank = load_run_teachers(self.run, self.teachers, self.backbone, self.tagi_config.lora)
            check_categories(self.bank, self.trainer.datamodule.categories)  # type: ignore[attr-defined]
        if not self.loss_config.lambda1:
            return
        self.teacher_model = self.load_logits_teacher()
        if self.loss_config.teacher_cache.enabled:
            self.teacher_cache = self.open_teacher_cache()
            self.teacher_digests = adapter_digests(self.bank()) if self.bank is not None else []

    def load_logits_teacher(self) -> Backbone | TagiModel:
        """Returns the frozen model whose distribution L_kl follows: the stage's own backbone where that stays still."""
        if self.logits_teacher in (CATEGORY, BACKBONE):
            return self.load_run_backbone() if self.tagi_config.trained_backbone != "none" else self.backbone
        config = resolve_backbone(self.run, self.backbone_config)
        return load_teacher_folder(Path(self.logits_teacher), config, self.backbone)

    def open_teacher_cache(self) -> TeacherCache:
        """Opens the file of this teacher, computed with as it is here, at this k and temperature.

        Raises:
            ValueError: If the teacher's answer depends on more than prompt and adapter.
        """
        config, teacher = self.loss_config.teacher_cache, self.teacher_model
        folder = config.folder or self.trainer.datamodule.cache_dir / TEACHERS  # type: ignore[attr-defined]
        if isinstance(teacher, TagiModel) and (teacher.uses_instruction or teacher.config.reads != "prompt"):
            raise ValueError(
                f"the logits teacher {self.logits_teacher} reads something else than the prompt, instructions apart or "
                "demonstrations, and its answers are not kept: set loss.teacher_cache.enabled=false"
            )
        stored = asdict(replace(self.backbone_config, name=self.checkpoint_backbone_digest()))
        settings = {"backbone": stored, "precision": str(self.trainer.precision)}
        if self.logits_teacher not in (CATEGORY, BACKBONE):
            settings["teacher"] = teacher.digest()
        return TeacherCache(Path(folder), config.top_k, self.loss_config.temperature, settings)

    @torch.no_grad()
    def teacher_logits(self, batch: TaskBatch, taught: LoraWeights | None, rows: Tensor | None = None) -> Tensor:
        """Returns the logits teacher's logits over the targets of all examples, or of `rows`, reading (a;b) [B, O, V].

        Args:
            batch: B examples of T tasks.
            taught: The T tasks' adapters; None for the bare backbone, or a teacher that has its own.
            rows: Which examples; None for all.
        """
        if isinstance(self.teacher_model, TagiModel):
            teacher = self.teacher_model
            inputs, adapter = teacher.inputs(batch), teacher.adapt(teacher.conditions(batch))
        else:
            inputs, adapter = self.prompts(batch), TaskAdapter(lora=taught)
        labels, task_index = batch.labels, batch.task_index
        if rows is not None:
            inputs, labels, task_index = inputs.map(lambda tensor: tensor[rows]), labels[rows], task_index[rows]
        logits: Tensor = self.teacher_model(inputs, labels, adapter, task_index)
        return logits

    def prompts(self, batch: TaskBatch) -> Tokens:
        """Returns the concatenated prompts (a;b) [B, P].

        Raises:
            ValueError: If the data module gives none.
        """
        if batch.prompt is None:
            raise ValueError("the logits teacher reads instruction and input concatenated: set data.with_prompt=true")
        return batch.prompt

    def teacher_answer(self, batch: TaskBatch, taught: LoraWeights | None) -> Tensor | TopK:
        """Returns what L_kl follows: the teacher's logits [B, O, V] or, with a cache, the `TopK` of the targets."""
        if self.teacher_cache is None:
            return self.teacher_logits(batch, taught)
        categories = batch.category[batch.task_index].tolist()
        adapters = [self.teacher_digests[category] if taught is not None else b"" for category in categories]
        keys = example_keys(self.prompts(batch), batch.labels, adapters)
        answer, found = self.teacher_cache.fill(keys, batch.labels, partial(self.teacher_logits, batch, taught))
        self.log("train/teacher_cache_hits", found / len(batch), batch_size=len(batch))
        return answer

    def loss_terms(self, batch: TaskBatch, adapter: TaskAdapter) -> dict[str, Tensor]:
        """Returns the weighted terms of eq. 6 as means over the batch's examples, by name."""
        config = self.loss_config
        taught = self.bank().index(batch.category) if self.bank is not None else None
        terms: dict[str, Tensor] = {}
        if config.weight_pred or config.lambda1:
            terms |= self.answer_terms(batch, adapter, taught if self.follows_categories else None)
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

    def answer_terms(self, batch: TaskBatch, adapter: TaskAdapter, taught: LoraWeights | None) -> dict[str, Tensor]:
        """Returns the weighted terms of eq. 6 over the student's answers, L_pred and L_kl."""
        config, labels = self.loss_config, batch.labels
        logits = self.model(self.model.inputs(batch), labels, adapter, batch.task_index)
        if config.lambda1:
            teacher = self.teacher_answer(batch, taught)
            pred, kl = prediction_and_distillation_loss(logits, teacher, labels, config.temperature)
            losses = {"pred": pred, "kl": kl}
        else:
            losses = {"pred": prediction_loss(logits, labels)}
        weights = {"pred": config.weight_pred, "kl": config.lambda1}
        return {name: weights[name] * loss.mean() for name, loss in losses.items() if weights[name]}

    def on_train_end(self) -> None:
        """Tells how large the teacher cache is."""
        if self.teacher_cache is not None and self.trainer.is_global_zero:
            size = f"{len(self.teacher_cache)} examples, {self.teacher_cache.num_bytes / 2**20:.1f} MiB"
            print(f"{self.stage_name}: teacher cache {self.teacher_cache.path} holds {size}", flush=True)

    def save(self, folder: Path) -> None:
        """Writes the model, and points RUN/model to it: the run's finished hypernetwork."""
        super().save(folder)
        link, new = self.run / MODEL, self.run / f".{MODEL}.new"
        if link.is_dir() and not link.is_symlink():
            print(f"{link} is a folder of its own and stays as it is; the model is in {folder}", flush=True)
            return
        new.unlink(missing_ok=True)
        new.symlink_to(folder.relative_to(self.run), target_is_directory=True)
        new.replace(link)

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns eq. 6 over one batch."""
        adapter = self.model.adapt(self.read_instructions(self.model.conditions(batch)))
        terms = self.loss_terms(batch, adapter)
        loss = torch.stack(list(terms.values())).sum()
        self.log_loss("loss", loss, len(batch))
        for name, term in terms.items():
            self.log_loss(f"loss_{name}", term, len(batch))
        if self.should_log():
            self.log_adapter(adapter, len(batch))
            self.log_gradient_norms(terms, len(batch))
        return self.weighted(loss)

"""Stage align, our extension: regress the teachers' adapters from the instructions, without reading any input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from tagi_lightning.backbones import Backbone, BackboneConfig, GenerationConfig
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.data.ranges import check_range
from tagi_lightning.lora import LoraBank, LoraConfig, LoraWeights
from tagi_lightning.losses import alignment_loss
from tagi_lightning.model import TagiConfig
from tagi_lightning.stages.base import MissingInputError, OptimizerConfig
from tagi_lightning.stages.tagi import TagiStage
from tagi_lightning.storage.run_layout import model_folder
from tagi_lightning.storage.serialization import load_bank
from tagi_lightning.updates import update_cosine


@dataclass(frozen=True)
class AlignmentConfig:
    """How generated adapters are compared with taught ones (eq. 4)."""

    target: Literal["factors", "product"] = "factors"
    """factors: A with A and B with B; product: the updates B A."""
    reduction: Literal["mean", "sum"] = "mean"
    """mean over elements and sites, or their sum."""
    scale: float = 100.0
    """Multiplies L_ins. 1 with mean is the paper's letter, whose gradient is hundreds of times smaller than that of
    L_pred; at 100 it is about a fifth."""

    def __post_init__(self) -> None:
        check_range({"alignment.scale": self.scale}, least=0)

    def loss(self, generated: LoraWeights, taught: LoraWeights) -> Tensor:
        """Returns L_ins of each task [T]."""
        return alignment_loss(generated, taught, target=self.target, reduction=self.reduction, scale=self.scale)


def load_run_teachers(run: Path, teachers: str, backbone: Backbone, lora: LoraConfig) -> LoraBank:
    """Loads the teachers: `auto` stands for this run's own.

    Raises:
        MissingInputError: If they are not there.
    """
    folder = model_folder(run, "teachers", teachers)
    if not folder.is_dir():
        raise MissingInputError(
            f"the teachers' adapters are needed and {folder} is not there; make them: make teachers, "
            "or train without: --model.init_args.teachers=none"
        )
    return load_bank(folder, backbone, lora)


class Alignment(TagiStage):
    """Trains the hypernetwork by eq. 4 alone."""

    stage_name = "align"
    reads_memory = False
    previous = ("pretrain",)

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        tagi: TagiConfig = TagiConfig(),  # noqa: B008
        alignment: AlignmentConfig = AlignmentConfig(scale=1e4),
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        teachers: str = "auto",
        init_from: str = "auto",
        instruction_cache_mb: int = 1024,
    ) -> None:
        """Takes the settings.

        Args:
            run: Run folder.
            backbone: The frozen language model.
            tagi: Adapter, hypernetwork, fusion and memory.
            alignment: How adapters are compared.
            optimizer: Optimizer and schedule.
            teachers: auto for this run's teachers, or a folder.
            init_from: auto or pretrain for this run's pretrained hypernetwork, none, or a model folder.
            instruction_cache_mb: Memory for the frozen backbone's states over instructions, each encoded once; 0 for
                none.
        """
        super().__init__(run, backbone, tagi, optimizer, GenerationConfig(), init_from, instruction_cache_mb)
        self.alignment = alignment
        self.teachers = teachers

    def build(self) -> None:
        """Loads the teachers besides the model.

        Raises:
            ValueError: If no LoRA is generated that could be aligned.
        """
        if not self.tagi_config.generates_lora:
            raise ValueError(
                "align trains the hypernetwork's LoRA, but tagi.hypernetwork.enabled is false or writes is prefix"
            )
        super().build()
        self.bank = load_run_teachers(self.run, self.teachers, self.backbone, self.tagi_config.lora)
        check_categories(self.bank, self.trainer.datamodule.categories)  # type: ignore[attr-defined]

    def freeze_untrained(self) -> None:
        """Lets only what writes the LoRA train."""
        for still in (self.model.fusion, self.model.hypernetwork.prefix_generator, self.backbone):  # type: ignore[union-attr]
            if still is not None:
                still.requires_grad_(False)

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns eq. 4 over the instructions of one batch."""
        assert self.model.hypernetwork is not None
        encoded = self.read_instructions(batch.instruction)
        generated = self.model.hypernetwork(encoded.states, encoded.mask).lora
        assert generated is not None
        loss = self.alignment.loss(generated, self.bank().index(batch.category)).mean()
        self.log_loss("loss", loss, len(batch.category))
        if self.should_log():
            cosine = update_cosine(generated, self.bank().index(batch.category))
            self.log("train/cosine_to_teacher", cosine, batch_size=len(batch.category))
        return self.weighted(loss)


def check_categories(bank: LoraBank, categories: tuple[str, ...]) -> None:
    """Refuses a bank whose adapters are not those of the training categories, in their order.

    Raises:
        ValueError: If names differ.
    """
    if bank.names != tuple(categories):
        missing = sorted(set(categories) - set(bank.names))
        detail = f"no teacher for {', '.join(missing[:5])}" if missing else "other categories were taught"
        raise ValueError(
            f"the teachers do not fit the training categories: {detail}; give the same data options, or train them "
            "again: make teachers"
        )

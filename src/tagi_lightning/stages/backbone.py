"""Stage pretrain-backbone: a small T5 from scratch, for those who have no pretrained one at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import SIZES, BackboneConfig, build_backbone
from tagi_lightning.backbones.loading import BackboneError, set_execution, t5_config
from tagi_lightning.data.batch import TextBatch
from tagi_lightning.losses import prediction_loss
from tagi_lightning.stages.base import OptimizerConfig, Stage


class BackbonePretraining(Stage):
    """Trains all weights of a built-in size on span corruption, prefix LM and concatenated instructions."""

    stage_name = "pretrain-backbone"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3, schedule="linear"),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Takes the settings.

        Args:
            run: Run folder.
            backbone: A built-in size.
            optimizer: Optimizer and schedule.
            seed: Draws the initial weights.
        """
        super().__init__(run, backbone, optimizer)
        if backbone.name not in SIZES:
            raise BackboneError(
                f"pretrain-backbone trains a built-in size ({', '.join(SIZES)}) from scratch, got {backbone.name!r}"
            )
        self.seed = seed

    def build(self) -> None:
        """Builds the model for the tokenizer's vocabulary."""
        self.backbone = build_backbone(
            t5_config(self.backbone_config.name, len(self.tokenizer)), self.backbone_config.name, self.seed
        )
        set_execution(self.backbone, self.backbone_config)
        self.backbone.train()

    def loss(self, batch: TextBatch) -> Tensor:
        """Returns the mean cross entropy of the targets."""
        nothing = torch.zeros(len(batch.source), dtype=torch.long, device=batch.labels.device)
        logits = self.backbone(batch.source, batch.labels, TaskAdapter(), nothing)
        return prediction_loss(logits, batch.labels).mean()

    def training_step(self, batch: TextBatch, batch_index: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self.loss(batch)
        self.log_loss("loss", loss, len(batch.source))
        return self.weighted(loss)

    def validation_step(self, batch: TextBatch, batch_index: int) -> None:
        """Logs the loss on held-out text."""
        self.log(
            "val/loss", self.loss(batch), batch_size=self.counted(len(batch.source)), prog_bar=True, sync_dist=True
        )

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder with the tokenizer beside the weights."""
        shutil.rmtree(folder, ignore_errors=True)
        self.backbone.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def checkpoint_backbone_digest(self) -> str:
        """Returns a mark instead of a digest: here the backbone itself is what trains."""
        return "trained"

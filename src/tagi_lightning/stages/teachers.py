"""Stage teachers: one LoRA per category on the frozen backbone, reading instruction and input (paper section 4.2)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import BackboneConfig
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.losses import prediction_loss, update_norms
from tagi_lightning.serialization import save_bank
from tagi_lightning.stages.base import OptimizerConfig, Stage


class TeacherTraining(Stage):
    """Trains all teachers together by cross entropy on (a;b) -> c; batches mix categories."""

    stage_name = "teachers"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        lora: LoraConfig = LoraConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(warmup=0.0),  # noqa: B008
    ) -> None:
        """Takes the settings (Table 6: AdamW, lr 1e-4, 10,000 steps, batch 8 x 2, rank 32).

        Args:
            run: Run folder.
            backbone: The frozen language model.
            lora: Sites, rank, scale and A_0, the same as the student's.
            optimizer: Optimizer and schedule.
        """
        super().__init__(run, backbone, optimizer)
        self.lora = lora

    def build(self) -> None:
        """Loads the backbone and creates one adapter per training category."""
        self.backbone = self.load_run_backbone()
        categories = self.trainer.datamodule.categories  # type: ignore[attr-defined]
        self.bank = LoraBank(self.backbone.sites(self.lora), self.lora, categories)

    def loss(self, batch: TaskBatch) -> Tensor:
        """Returns the mean cross entropy under each example's own teacher."""
        if batch.prompt is None:
            raise ValueError("teachers read instruction and input concatenated: set data.with_prompt=true")
        adapter = TaskAdapter(lora=self.bank())
        logits = self.backbone(batch.prompt, batch.labels, adapter, batch.category[batch.task_index])
        return prediction_loss(logits, batch.labels).mean()

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self.loss(batch)
        self.log_loss("loss", loss, len(batch))
        if self.should_log():
            for stack, norms in update_norms(self.bank(), self.bank.groups.sites).items():
                for name, norm in norms.items():
                    self.log(f"teachers/{stack}/norm_{name}", norm, batch_size=len(batch))
        return loss

    def validation_step(self, batch: TaskBatch, batch_index: int) -> None:
        """Logs the loss on validation instances of the training categories."""
        if (batch.category >= 0).all():
            self.log("val/loss", self.loss(batch), batch_size=len(batch), prog_bar=True, sync_dist=True)

    def save(self, folder: Path) -> None:
        """Writes the bank."""
        save_bank(self.bank, folder, self.backbone)

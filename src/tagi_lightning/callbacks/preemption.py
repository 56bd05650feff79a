"""Stopping a training between two batches when a signal asks for it."""

from __future__ import annotations

from typing import Any

import lightning as L

from tagi_lightning.callbacks.resume import ExactResume
from tagi_lightning.preemption import preemption


class StopAtBatch(L.Callback):
    """Raises `Preempted` before the next batch of training or validation once a signal has come.

    On several devices all stop before the same training batch, wherever the signal arrived.
    """

    def __init__(self, resume: ExactResume) -> None:
        """Takes what knows whether the last step's state is whole."""
        super().__init__()
        self.resume = resume

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals back from Lightning."""
        preemption.install()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals back from Lightning."""
        preemption.install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals back from Lightning; from here on they wait for a batch to end."""
        preemption.install()
        preemption.deferred = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops if a signal has come, in the middle of an accumulation too unless validation was made in it."""
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(preemption.requested, all=False):
            preemption.request()
        if self.resume.whole:
            preemption.check()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops if a signal has come; the resumed run validates again. Several devices go on to the next batch."""
        if trainer.world_size == 1 and self.resume.whole:
            preemption.check()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops if a signal came with the last batches."""
        preemption.deferred = False
        preemption.check()

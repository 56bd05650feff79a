"""The run's hyper-parameters beside its final figures, for TensorBoard's HParams page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

FINAL_METRICS = ("val/rougeL", "val/exact_match", "val/loss", "train/loss")
"""Figures shown beside the hyper-parameters where the stage has them."""


class HyperParameters(L.Callback):
    """Writes hyper-parameters and final figures once training ends."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Takes the hyper-parameters as dotted names and plain values."""
        super().__init__()
        self.values = {
            name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in values.items()
        }

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the page's entry."""
        found = {
            name: float(trainer.callback_metrics[name]) for name in FINAL_METRICS if name in trainer.callback_metrics
        }
        if isinstance(trainer.logger, TensorBoardLogger) and found:
            trainer.logger.log_hyperparams(self.values, {f"final/{name}": value for name, value in found.items()})

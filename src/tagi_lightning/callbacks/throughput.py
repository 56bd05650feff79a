"""Speed and waste of training, under `perf/`."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from tagi_lightning.data.batch import TaskBatch, TextBatch, Tokens


def token_rows(batch: TaskBatch | TextBatch) -> list[Tokens]:
    """Returns the padded token rows a stage reads from `batch`."""
    if isinstance(batch, TextBatch):
        return [batch.source]
    rows = [batch.instruction, batch.input]
    return [*rows, batch.prompt] if batch.prompt is not None else rows


class Throughput(L.Callback):
    """Logs examples and tokens per second, the loader's share of the step time and the padding share."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._reset()

    def _reset(self) -> None:
        self._since = self._ended = time.perf_counter()
        self._waited = 0.0
        self._batches = self._examples = self._tokens = self._positions = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock again, as if validation had taken no time."""
        if trainer.sanity_checking:
            return
        pause = time.perf_counter() - self._paused
        self._since += pause
        self._ended += pause

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the time since the last batch ended as waiting for the loader."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch, and logs at the trainer's interval."""
        self._batches += 1
        self._examples += len(batch.labels)
        for rows in token_rows(batch):
            self._tokens += int(rows.mask.sum())
            self._positions += rows.mask.numel()
        self._ended = time.perf_counter()
        if self._batches >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            seconds = self._ended - self._since
            figures = {
                "perf/examples_per_s": self._examples / seconds,
                "perf/tokens_per_s": self._tokens / seconds,
                "perf/loader_share": self._waited / seconds,
                "perf/padding_share": 1 - self._tokens / max(self._positions, 1),
            }
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)
            self._reset()

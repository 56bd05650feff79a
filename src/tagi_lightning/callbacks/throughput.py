"""Speed and waste of training, under `perf/`."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import lightning as L
from torch import Tensor

from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, TextBatch


def token_masks(batch: TaskBatch | TextBatch) -> dict[str, list[Tensor]]:
    """Returns the masks of all rows that a stage's encoder and decoder read from `batch`."""
    if isinstance(batch, TextBatch):
        rows = [batch.source]
    else:
        further = (batch.prompt, batch.demonstrations, batch.demonstrated_prompt)
        rows = [batch.instruction, batch.input, *(tokens for tokens in further if tokens is not None)]
    return {"encoder": [tokens.mask for tokens in rows], "decoder": [batch.labels != IGNORE_INDEX]}


class Throughput(L.Callback):
    """Logs examples and encoder tokens per second, the loader's share of the step time and the padding shares.

    Padding is told of the encoder's rows, of the decoder's and of both together (`perf/padding_share`). The loader's
    share is the time between two steps; on a GPU, which may still be at work then, the loss is at most that.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._reset()

    def _reset(self) -> None:
        self._since = self._ended = time.perf_counter()
        self._waited = 0.0
        self._batches = self._examples = 0
        self._tokens: dict[str, Tensor | int] = {"encoder": 0, "decoder": 0}
        self._positions: Counter[str] = Counter()

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
        for part, masks in token_masks(batch).items():
            for mask in masks:
                # stays on the device: reading it here would make every step wait for the GPU
                self._tokens[part] = self._tokens[part] + mask.sum()
                self._positions[part] += mask.numel()
        self._ended = time.perf_counter()
        if self._batches >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            figures = self._figures()
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)
            self._reset()

    def _figures(self) -> dict[str, float]:
        tokens = {part: int(count) for part, count in self._tokens.items()}
        seconds = time.perf_counter() - self._since
        padding = {part: self._positions[part] - count for part, count in tokens.items()}
        return {
            "perf/examples_per_s": self._examples / seconds,
            "perf/tokens_per_s": tokens["encoder"] / seconds,
            "perf/loader_share": self._waited / seconds,
            "perf/padding_share": sum(padding.values()) / max(self._positions.total(), 1),
            **{f"perf/padding_share_{part}": padding[part] / max(self._positions[part], 1) for part in padding},
        }

"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from tagi_lightning.durations import duration

INTERVAL = 15.0
"""Seconds between lines."""


class LineProgress(ProgressBar):
    """Prints step, time left and loss every fifteen seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._last = 0.0

    @staticmethod
    def for_this_output() -> ProgressBar:
        """Returns Lightning's bar on a terminal, lines elsewhere."""
        return TQDMProgressBar(leave=True) if sys.stderr.isatty() else LineProgress()

    def disable(self) -> None:
        """Prints nothing from here on."""
        self._enabled = False

    def enable(self) -> None:
        """Prints again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line where the last one is old enough."""
        total = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        loss = self.get_metrics(trainer, pl_module).get("train/loss")
        shown = f", loss {float(loss):.4g}" if isinstance(loss, (int, float, str)) else ""
        self._line(getattr(pl_module, "stage_name", "training"), "step", trainer.global_step, total, shown)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._begin(0)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Prints a line where the last one is old enough."""
        self._line(
            getattr(pl_module, "system", "test"),
            "batch",
            batch_idx + 1,
            int(sum(trainer.num_test_batches)),
        )

    def _begin(self, done: int) -> None:
        self._start, self._first, self._last = time.monotonic(), done, time.monotonic()

    def _line(self, name: str, unit: str, done: int, total: int, shown: str = "") -> None:
        now = time.monotonic()
        if not self._enabled or now - self._last < INTERVAL:
            return
        self._last = now
        speed = (done - self._first) / (now - self._start)
        left = duration((total - done) / speed) if speed else "?"
        print(f"{name}: {unit} {done}/{total}, {pace(speed)}, {left} left{shown}", file=sys.stderr, flush=True)


def pace(speed: float) -> str:
    """Returns steps a second in words, e.g. 12.5/s, or 4.2 s each where they are slower than one a second."""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each" if speed else "-"

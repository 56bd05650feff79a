"""A table of sample answers in TensorBoard after each validation."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from tagi_lightning.evaluation.metrics import exact_match
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.markdown import aligned_table

ROWS = 20
"""Answers shown."""


def sample_table(rows: list[Prediction]) -> str:
    """Returns a Markdown table of evenly spread `rows`: task, prediction, first reference, right or wrong."""
    step = max(1, len(rows) // ROWS)
    lines = [["task", "prediction", "reference", "right"]]
    for row in rows[::step][:ROWS]:
        right = "yes" if exact_match(row.prediction, row.references) else "no"
        texts = [" ".join(text.split())[:200] for text in (row.prediction, row.references[0])]
        lines.append([row.task, *texts, right])
    return aligned_table(lines, texts=4)


class SampleTable(L.Callback):
    """Writes what the stage decoded in validation as a text table."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the table where the stage has decoded answers."""
        rows: list[Prediction] = getattr(pl_module, "validation_rows", [])
        logger = trainer.logger
        if rows and isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and not trainer.sanity_checking:
            logger.experiment.add_text("val/samples", sample_table(rows), trainer.global_step)

"""Pictures of what the hypernetwork does with a fixed set of tasks, in TensorBoard."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy

from tagi_lightning.model import TagiModel

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from tagi_lightning.inspection.adapters import Written
    from tagi_lightning.inspection.pictures import Inspection
    from tagi_lightning.inspection.tasks import InspectedTasks

TASKS, ASKED = 64, 12
"""Tasks that are drawn, and tasks of training and validation that are answered, at most."""
INTERVAL = 300.0
"""Least seconds between the pictures of two validations: drawing takes some."""


class InspectModel(L.Callback):
    """Draws adapters, gates, attention, answers and scores under `inspection/`, from the first process alone.

    Stages that read no instruction tasks have none. Of test tasks only the instruction and one input are read, and no
    answer is made, so that nobody chooses by them. Where the weights are in shards (FSDP) nothing is drawn.
    """

    def __init__(self, every: int | None = None) -> None:
        """Takes the optimizer steps between two inspections.

        Args:
            every: None for after validations, five minutes or more apart; 0 for none at all. Unless it is 0, the last
                step is inspected, too.
        """
        super().__init__()
        self.every = every
        self._step: int | None = None
        self._last = -INTERVAL
        self._tasks: tuple[InspectedTasks, InspectedTasks] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws if it is this step's turn."""
        if self.every and trainer.global_step and trainer.global_step % self.every == 0:
            self._inspect(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws after a validation, where no number of steps is set and the last pictures are old enough."""
        if self.every is None and not trainer.sanity_checking and time.monotonic() - self._last >= INTERVAL:
            self._inspect(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws what came out."""
        if self.every != 0:
            self._inspect(trainer, pl_module)

    def _inspect(self, trainer: L.Trainer, stage: L.LightningModule) -> None:
        model, logger, data = getattr(stage, "model", None), trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(model, TagiModel) or not hasattr(data, "collator") or self._step == trainer.global_step:
            return
        sharded = isinstance(trainer.strategy, FSDPStrategy)
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero or sharded:
            return
        self._step = trainer.global_step
        self._tasks = self._tasks or chosen_tasks(data)
        count, name = len(self._tasks[0].tasks), getattr(stage, "stage_name", "training")
        print(f"{name}: drawing pictures of {count} tasks (--inspect_every=0: none)", file=sys.stderr, flush=True)
        gpus = [stage.device] if stage.device.type == "cuda" else []
        # answers may be sampled, and a compiled backbone would be compiled once more for each shape
        with (
            evaluating(model),
            torch.no_grad(),
            torch.random.fork_rng(devices=gpus),
            torch.compiler.set_stance("force_eager"),
        ):
            write_inspection(logger.experiment, Path(logger.log_dir), stage, *self._tasks, self._step)
        self._last = time.monotonic()


def chosen_tasks(data: Any) -> tuple[InspectedTasks, InspectedTasks]:
    """Returns the tasks of a data module that are drawn, and those that are answered."""
    from tagi_lightning.inspection.tasks import collate_tasks

    asked = {split: data.tasks[split] for split in ("validation", "train") if split in data.tasks}
    return collate_tasks(data.tasks, data.collator, 1, TASKS), collate_tasks(asked, data.collator, 1, ASKED)


def write_inspection(
    writer: SummaryWriter, folder: Path, stage: Any, drawn: InspectedTasks, asked: InspectedTasks, step: int
) -> None:
    """Draws a stage's model and has it answer, and writes both.

    Args:
        writer: Writes the events.
        folder: Where they lie.
        stage: The stage.
        drawn: Tasks whose adapters are drawn.
        asked: Tasks whose first inputs are answered.
        step: The step that the pictures are of.
    """
    from tagi_lightning.inspection.answers import answer_tasks, sample_lines
    from tagi_lightning.inspection.figures import distributions
    from tagi_lightning.inspection.pictures import inspect_model, prediction_pictures
    from tagi_lightning.markdown import aligned_table

    found = inspect_model(stage.model, drawn, stage.tokenizer, getattr(stage, "bank", None))
    found.pictures.extend(prediction_pictures(stage.validation_rows, "validation"))
    for written in found.written:
        write_points(writer, folder, found, written, step)
        for title, groups in distributions(drawn.tasks, written).items():
            for name, values in groups.items():
                writer.add_histogram(f"inspection/{written.kind} {title}/{name}".replace(" ", "_"), values, step)
    write_figures(writer, found, step)
    answers = answer_tasks(stage.model, asked, stage.tokenizer, stage.generation)
    writer.add_text("inspection/samples", aligned_table(sample_lines(answers)), step)
    if found.left_out:
        lines = [("left out", "because"), *found.left_out.items()]
        writer.add_text("inspection/left_out", aligned_table(lines), step)


def write_points(writer: SummaryWriter, folder: Path, found: Inspection, written: Written, step: int) -> None:
    """Writes adapters as points for the embedding projector, unless an earlier start has."""
    tag, tasks = f"adapters-{written.kind}", found.tasks.tasks
    # as torch names it; a second one would be listed twice
    if len(tasks) < 2 or (folder / f"{step:05d}" / tag).exists():
        return
    metadata = [[" ".join(text.split()) for text in (task.name, task.category, task.split)] for task in tasks]
    points, _ = written.points()
    writer.add_embedding(points, metadata, global_step=step, tag=tag, metadata_header=["task", "category", "split"])


def write_figures(writer: SummaryWriter, found: Inspection, step: int) -> None:
    """Writes the pictures, 1,200 pixels wide."""
    from tagi_lightning.report.charts import DPI

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for picture in found.pictures:
            picture.figure.set_dpi(DPI)
            writer.add_figure(f"inspection/{picture.name}", picture.figure, step, close=False)


@contextmanager
def evaluating(model: TagiModel) -> Iterator[None]:
    """Puts a model into evaluation mode, and each of its modules back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

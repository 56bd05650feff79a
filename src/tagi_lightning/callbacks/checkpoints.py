"""Checkpoints: when they are written, under names that do not depend on how the run was started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from tagi_lightning.callbacks.finite import NonFiniteError
from tagi_lightning.callbacks.resume import ExactResume
from tagi_lightning.preemption import Preempted
from tagi_lightning.storage.checkpoint_files import BEST, LAST, write_checkpoint


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint."""
        write_checkpoint(checkpoint, Path(path))


class LastCheckpoint(Checkpoint):
    """Keeps the state of the last step in `last.ckpt`, and the one written before in `previous.ckpt`.

    It is written every so many steps, at the end, and where an exception or a signal ends the run. A step's state is
    written once its figures are logged and its validation is over, so that a resumed run has nothing to make up for.
    """

    def __init__(self, folder: Path, every: int, resume: ExactResume, facts: Mapping[str, Any]) -> None:
        """Takes where and when to write.

        Args:
            folder: The folder of checkpoints.
            every: Optimizer steps between two of them.
            resume: What knows the state after the last step.
            facts: What a checkpoint says of the run, in plain types: configuration, versions, commit.
        """
        super().__init__()
        self.path, self.every, self.resume, self.facts = folder / LAST, every, resume, dict(facts)
        self._written: tuple[int, bool] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what the run is."""
        checkpoint["run"] = self.facts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Has a validation finished that belongs to the state that was loaded."""
        self.resume.finish_validation(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Writes the step before this batch if it is its turn."""
        self._write_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes an epoch's last step if it is its turn."""
        self._write_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the last step."""
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Writes the last whole step, unless a resumed run would end before it came to the missing validation.

        Several devices write together, which they can do where they ended for the same reason at the same batch.
        """
        if self.resume.validate and self.resume.ends(trainer):
            return
        if trainer.world_size > 1 and not isinstance(exception, (Preempted, NonFiniteError)):
            return
        try:
            self._write(trainer)
        except OSError as error:
            print(error, flush=True)  # what ended the run is told by the exception

    def _write_if_due(self, trainer: L.Trainer) -> None:
        step = self.resume.step
        if step is not None and step % self.every == 0 and not self.resume.validate:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        state = (self.resume.step, self.resume.validate)
        if self.resume.step is None or self._written == state or not self.resume.whole:
            return
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._written = state  # type: ignore[assignment]


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the best validation in `best.ckpt`, wherever the run folder lies."""

    def __init__(self, folder: Path, monitor: str) -> None:
        """Takes the folder of checkpoints and the score, the higher the better."""
        super().__init__(
            folder, filename=Path(BEST).stem, monitor=monitor, mode="max", save_top_k=1, enable_version_counter=False
        )

    @property
    def state_key(self) -> str:
        """Name under which checkpoints keep this one's state."""
        return f"BestCheckpoint/{self.monitor}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what was best, also from a folder that was moved since."""
        path = str(Path(str(self.dirpath)) / BEST)
        if state_dict["best_model_path"]:
            state_dict = state_dict | {
                "best_model_path": path,
                "kth_best_model_path": path,
                "best_k_models": {path: state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})

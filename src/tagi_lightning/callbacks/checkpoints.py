"""Checkpoints whose place and names do not depend on how the run was started."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` with one `last.ckpt`, whatever number of steps was asked for and wherever the folder lies.

    Lightning's own identifies its state by its settings and its folder's path; with either changed it takes the
    `last.ckpt` that is there for a stranger's and writes `last-v1.ckpt` beside it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes ModelCheckpoint's arguments."""
        super().__init__(*args, **kwargs, enable_version_counter=False)  # type: ignore[misc]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves a step's state again where validation followed, since a resumed run does not validate it again."""
        super().on_validation_end(trainer, pl_module)
        if self.save_last and not trainer.sanity_checking and self._last_global_step_saved == trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    @property
    def state_key(self) -> str:
        """The same key for every start of a run."""
        return f"RunCheckpoint/{self.monitor}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best score and files, seen from where the folder lies now."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

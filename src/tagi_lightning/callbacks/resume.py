"""Resuming after any step with the bits of a run that was never stopped."""

from __future__ import annotations

import copy
import random
from typing import Any

import lightning as L
import numpy as np
import torch

from tagi_lightning.stages.sharing import gather_state


class ExactResume(L.Callback):
    """Notes where training stands after each optimizer step, so that a checkpoint written later says that.

    Weights and optimizer change in a step alone. What else moves on until the next one (counts of batches, the
    loader's place, random numbers) is noted here and written instead of its present state. So an exception or a signal
    in the middle of an accumulation loses its gradients and nothing else: a resumed run reads its batches again.
    A run that was stopped in the validation after a step validates again.

    Must come before the callbacks that log and those that write checkpoints.

    Attributes:
        whole: Whether weights, optimizer and what validation decides are those of the noted step.
        validate: Whether the validation that follows the noted step is still to be made.
    """

    def __init__(self) -> None:
        """Has nothing noted yet."""
        super().__init__()
        self.whole = True
        self.validate = False
        self._noted: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def step(self) -> int | None:
        """The noted optimizer step; None before the first of this process."""
        return self._noted["step"] if self._noted else None

    def ends(self, trainer: L.Trainer) -> bool:
        """Whether training ends with the noted step."""
        epochs = self._noted["loop"]["epoch_progress"]["current"]["processed"] if self._noted else 0
        return trainer.fit_loop.done or 0 <= (trainer.max_epochs or -1) <= epochs

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """From here to the end of the batch the state is of two steps."""
        self.whole = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes where training stands if the batch ended a step."""
        loop = trainer.fit_loop
        follows = validation_follows(trainer)
        if loop.epoch_loop._should_accumulate():
            # what validation decides in the middle of an accumulation belongs to no step
            self.whole = self.whole and not follows
            return
        self._noted = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "loop": after_batch(loop.state_dict()),
            "random": random_state(),
        }
        self.whole, self.validate = True, follows

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on the stage draws its conclusions."""
        if not trainer.sanity_checking:
            self.whole = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that the step is validated."""
        if not trainer.sanity_checking and self.validate:
            self.whole, self.validate = True, False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes what was noted."""
        if self._noted:
            checkpoint["loops"]["fit_loop"] = copy.deepcopy(self._noted["loop"])
            checkpoint["epoch"] = self._noted["epoch"]
            checkpoint["resume"] = {
                "random": gather_state(trainer, self._noted["random"]),
                "validate": self.validate,
                "epoch": self._noted["epoch"],
                "together": trainer.datamodule.together,  # type: ignore[attr-defined]
            }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps what the first batch needs, and counts what was read as these devices read it."""
        if "resume" in checkpoint:
            loop, together = checkpoint["loops"]["fit_loop"], trainer.datamodule.together  # type: ignore[attr-defined]
            recount(loop, checkpoint["resume"].get("together", 1), together)
            self._restored = checkpoint["resume"] | {"loop": copy.deepcopy(loop)}

    def finish_validation(self, trainer: L.Trainer) -> None:
        """Makes the validation that the stopped run did not come to the end of; all callbacks must have started."""
        if self._restored and self._restored["validate"]:
            self._noted = {
                "step": trainer.global_step,
                "epoch": self._restored["epoch"],
                "loop": self._restored["loop"],
                "random": own_random_state(self._restored["random"], trainer.global_rank),
            }
            self.validate = True
            run_validation(trainer, self._restored["epoch"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Goes on with the random numbers of the stopped run."""
        if self._restored:
            set_random_state(own_random_state(self._restored["random"], trainer.global_rank))
            # Lightning counts a step twice where it skips the validation that was made
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._restored = None


def validation_follows(trainer: L.Trainer) -> bool:
    """Tells whether Lightning validates after the batch that ends."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
        return False
    loop.epoch_loop.val_loop.setup_data()
    return not loop.epoch_loop.val_loop.skip


def after_batch(loop: dict[str, Any]) -> dict[str, Any]:
    """Returns the fit loop's state at the end of a batch as it is before the next one, at an epoch's end of the next.

    Lightning guesses from its counters where a checkpoint was written; these leave it nothing to guess.
    """
    state = copy.deepcopy(loop)
    batches = state["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts |= dict.fromkeys(("ready", "started", "completed"), counts["processed"])
    if batches["is_last_batch"]:
        steps = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress in (batches, state["epoch_loop.scheduler_progress"], *steps.values()):
            progress["current"] = dict.fromkeys(progress["current"], 0)
        for counts in (state["epoch_progress"]["total"], state["epoch_progress"]["current"]):
            counts |= dict.fromkeys(counts, counts["ready"])
    batches["is_last_batch"] = False
    state["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    for loader in state["state_dict"].get("combined_loader", []):
        loader |= {
            "epoch": state["epoch_progress"]["current"]["processed"],
            "position": batches["current"]["processed"],
        }
    return state


def recount(loop: dict[str, Any], before: int, now: int) -> None:
    """Changes a fit loop's counts of batches, of which devices read `before` at once, to those where they read `now`.

    The batches of whole optimizer steps divide by both.
    """
    batches = loop["epoch_loop.batch_progress"]
    loaders = loop["state_dict"].get("combined_loader", [])
    for counts in (batches["total"], batches["current"], *loaders):
        for name in counts.keys() - {"epoch"}:
            counts[name] = counts[name] * before // now


def run_validation(trainer: L.Trainer, epoch: int) -> None:
    """Validates before the first batch, as Lightning does after the last batch of `epoch`."""
    connector, progress = trainer._logger_connector, trainer.fit_loop.epoch_progress.current
    loop = trainer.fit_loop.epoch_loop
    first, completed = connector._first_loop_iter, progress.completed
    progress.completed = epoch
    # Lightning's loggers count a step only once its validation is over
    loop._batches_that_stepped = trainer.global_step - 1
    loop.val_loop.restarting = False
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped = trainer.global_step
    connector._first_loop_iter, progress.completed = first, completed


def random_state() -> dict[str, Any]:
    """Returns the states of all random numbers in plain types and tensors: torch's CPU and GPUs, NumPy's, Python's."""
    generator = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "key": torch.from_numpy(generator["state"]["key"].copy()),  # type: ignore[index, call-overload]
            "pos": generator["state"]["pos"],  # type: ignore[index, call-overload]
            "has_gauss": generator["has_gauss"],  # type: ignore[call-overload]
            "gauss": generator["gauss"],  # type: ignore[call-overload]
        },
        "python": random.getstate(),
    }


def own_random_state(states: Any, rank: int) -> dict[str, Any]:
    """Returns a device's own of the states in a checkpoint; more devices than before share theirs."""
    state: dict[str, Any] = states[rank % len(states)] if isinstance(states, list) else states
    return state


def set_random_state(states: dict[str, Any]) -> None:
    """Restores what `random_state` returned, as far as there are such devices."""
    torch.set_rng_state(states["torch"].cpu())
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
    own = states["numpy"]
    np.random.set_state(("MT19937", own["key"].cpu().numpy(), own["pos"], own["has_gauss"], own["gauss"]))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))

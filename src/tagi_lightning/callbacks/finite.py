"""Numbers that go wrong: a loss or gradient that is NaN or infinite never reaches the weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from tagi_lightning.data.batch import TaskBatch, TextBatch
from tagi_lightning.data.files import replace_file
from tagi_lightning.stages.sharing import gather

FOLDER = "non-finite"
"""Where dumps lie, under RUN/<stage>."""

SHOWN = 8
"""Instances and weights that a message names of each batch."""


class NonFiniteError(ValueError):
    """A loss or gradient that is no number; the message names the examples and the dump."""


class FiniteSteps(L.Callback):
    """Stops before an optimizer step whose loss or gradient is NaN or infinite, or leaves out the step.

    The weights are then those of the step before, and so is what `last.ckpt` gets. All devices decide alike. A step
    that is left out counts, and its examples do not come again before the next epoch.

    Must come before `ExactResume`.
    """

    def __init__(self, max_skipped_steps: int = 0) -> None:
        """Takes how many steps of the run may be left out.

        Raises:
            ValueError: If the number is negative.
        """
        super().__init__()
        if max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps must be 0 or more, got {max_skipped_steps}")
        self.max_skipped_steps, self.skipped = max_skipped_steps, 0
        self._batches: list[TaskBatch | TextBatch] = []
        self._losses: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses to leave out steps that DeepSpeed makes.

        Raises:
            ValueError: If that is asked for.
        """
        if self.max_skipped_steps and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ValueError("DeepSpeed keeps its gradients to itself: max_skipped_steps must be 0 with it")

    def state_dict(self) -> dict[str, Any]:
        """Returns how many steps were left out so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it over."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch until its step is made."""
        self._batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Keeps the loss until its step is made."""
        self._losses.append(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Looks at the losses of a step and at its gradient.

        Raises:
            NonFiniteError: If one is not finite and no step may be left out any more.
        """
        batches, losses = self._batches, torch.stack(self._losses)
        self._batches, self._losses = [], []
        # with float16, gradients overflow now and then, and Lightning's scaler leaves these steps out
        gradients = [] if str(trainer.precision).startswith("16") else gradients_of(pl_module)
        if not _on_any_device(trainer, is_wrong(losses, [gradient for _, gradient in gradients])):
            return
        told = describe(trainer, batches, losses, gradients)
        path = Path(pl_module.folder) / FOLDER / f"step-{trainer.global_step + 1}-device-{trainer.global_rank}.pt"  # type: ignore[arg-type]
        dump(path, trainer, batches, losses, gradients)
        if self.skipped >= self.max_skipped_steps:
            raise NonFiniteError(
                f"step {trainer.global_step + 1}: {told}. The weights are those of the step before; the batches are in "
                f"{path.parent}. Lower model.init_args.optimizer.lr (in another RUN), look at these examples, or leave "
                f"out such steps: --max_skipped_steps={self.skipped + 1}"
            )
        self.skipped += 1
        optimizer.zero_grad()
        if trainer.is_global_zero:
            print(
                f"step {trainer.global_step + 1} is left out ({self.skipped} of at most {self.max_skipped_steps}): "
                f"{told}; the batches are in {path.parent}",
                flush=True,
            )


def gradients_of(module: L.LightningModule) -> list[tuple[str, Tensor]]:
    """Returns the gradients of the trained weights by name."""
    # of a weight that FSDP shards, a device may hold nothing
    weights = module.named_parameters()
    return [(name, weight.grad) for name, weight in weights if weight.grad is not None and weight.grad.numel()]


def is_wrong(losses: Tensor, gradients: list[Tensor]) -> Tensor:
    """Returns whether anything is NaN or infinite, as a tensor that no one has waited for."""
    largest = [norm.to(losses) for norm in torch._foreach_norm(gradients, torch.inf)] if gradients else []
    return ~torch.stack([*losses, *largest]).isfinite().all()


def _on_any_device(trainer: L.Trainer, wrong: Tensor) -> bool:
    found = wrong.float()
    if trainer.world_size > 1:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def describe(trainer: L.Trainer, batches: list[Any], losses: Tensor, gradients: list[tuple[str, Tensor]]) -> str:
    """Returns what is wrong on which device with which examples; all devices must call it."""
    wrong = [
        f"loss {loss} on {examples_of(batch)}"
        for batch, loss in zip(batches, losses.tolist(), strict=True)
        if not math.isfinite(loss)
    ]
    found = gather(trainer, wrong)
    if not any(found):
        # gradients are those of all devices, and so is what a wrong loss makes of them
        names = [name for name, gradient in gradients if not gradient.isfinite().all()]
        examples = "; ".join(map(examples_of, batches))
        found = gather(trainer, [f"gradient of {', '.join(names[:3])} ({len(names)} weights in all) on {examples}"])
    if trainer.world_size == 1:
        return "; ".join(found[0])
    return "; ".join(f"device {rank}: {told}" for rank, own in enumerate(found) for told in own)


def examples_of(batch: TaskBatch | TextBatch) -> str:
    """Returns the names of a batch's examples."""
    if isinstance(batch, TextBatch):
        return f"{len(batch.source)} sequences of text"
    if not batch.ids:
        names = list(batch.tasks)
    else:
        names = [f"{batch.tasks[task]}/{id}" for task, id in zip(batch.task_index.tolist(), batch.ids, strict=True)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def dump(
    path: Path, trainer: L.Trainer, batches: list[Any], losses: Tensor, gradients: list[tuple[str, Tensor]]
) -> None:
    """Writes what a step was made of, in plain types and tensors: `torch.load(path, weights_only=True)`."""
    content = {
        "step": trainer.global_step + 1,
        "epoch": trainer.current_epoch,
        "losses": losses.tolist(),
        "largest_gradients": {name: float(gradient.abs().max()) for name, gradient in gradients},
        "batches": [asdict(batch.to("cpu")) for batch in batches],
    }
    replace_file(path, lambda stream: torch.save(content, stream))

"""Several devices: the same batches in every optimizer step as on one."""

from __future__ import annotations

from math import gcd
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy

COUNTED_IN_BATCHES = ("val_check_interval", "limit_train_batches")
"""Options of the trainer that count batches where they are whole numbers."""


class SharedBatches(L.Callback):
    """Has the devices read several batches of an optimizer step at once, and accumulate as many fewer.

    With N devices and A batches a step they read gcd(A, N) at once, each shared by N / gcd(A, N) devices. What a step
    is made of does not change: losses, weights and the sequence of batches are those of one device.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Divides the batches and says so.

        Raises:
            ValueError: If a device would have no example, or an option counts parts of what is read at once.
        """
        # the batches hold no floating-point numbers to convert, and Lightning cannot enter a frozen dataclass
        trainer.precision_plugin.convert_input = _unchanged  # type: ignore
        if stage != "fit" or trainer.world_size == 1:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        data.together = together = gcd(devices, accumulated)
        trainer.accumulate_grad_batches = accumulated // together
        _recount_options(trainer, together)
        examples, sharing = max(map(len, data.train_dataloader().batch_sampler.plan(0))), devices // together
        if examples < sharing:
            raise ValueError(
                f"{devices} devices are more than the {examples * together} examples of {together} batches that they "
                f"would read at once: take {examples * together} devices or fewer, or larger batches"
            )
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            # Lightning would ask the loader for it; it is used for nothing but DeepSpeed's own log
            trainer.strategy.config = {
                **(trainer.strategy.config or {}),
                "train_micro_batch_size_per_gpu": -(-examples // sharing),
            }
        if trainer.is_global_zero:
            print(
                f"{devices} devices: batches at once {together}, devices to a batch {sharing}, accumulation "
                f"{accumulated // together} instead of {accumulated}; a step reads the {examples * accumulated} "
                "examples that it reads on one device",
                flush=True,
            )


def _recount_options(trainer: L.Trainer, together: int) -> None:
    """Has options count what is read at once."""
    for name in COUNTED_IN_BATCHES:
        value = getattr(trainer, name)
        if not isinstance(value, int):
            continue
        if value % together:
            raise ValueError(
                f"--trainer.{name}={value} counts batches, of which {trainer.world_size} devices read {together} at "
                f"once: take a multiple of {together}"
            )
        setattr(trainer, name, value // together)


def _unchanged(batch: Any) -> Any:
    return batch

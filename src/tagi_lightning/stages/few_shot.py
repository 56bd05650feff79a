"""Full FT: all weights of the backbone trained on a few demonstrations of a data set, for as long as it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import Backbone
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.data.ranges import check_range
from tagi_lightning.losses import prediction_loss
from tagi_lightning.stages.base import OptimizerConfig


@dataclass(frozen=True)
class FewShotConfig:
    """How Full FT trains on each data set; batches are those of training, `tasks_per_batch` x `instances_per_task`."""

    steps: int = 300
    """Steps on each data set (FiD-ICL: 300)."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adafactor", lr=3e-4))
    """Optimizer (FiD-ICL: Adafactor, 3e-4); its rate stays the same, without warm-up."""

    def __post_init__(self) -> None:
        check_range({"few_shot.steps": self.steps}, least=1)


@contextmanager
def fine_tuned(
    backbone: Backbone,
    batches: Iterator[TaskBatch],
    config: FewShotConfig,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Trains all weights of `backbone` on concatenated prompts for a `with` block, and puts back every bit of them.

    Weights stored in 16 bits are float32 in the block: 16 bits would lose most updates.

    Args:
        backbone: The backbone, frozen before and after.
        batches: What it is trained on, without end.
        config: Steps and optimizer.
        precision: Opens the trainer's precision, in which the forward pass runs.

    Raises:
        ValueError: If the weights are stored in a type that cannot be trained, or batches have no prompts.
    """
    before = {parameter: parameter.data for parameter in backbone.parameters()}
    try:
        for parameter, data in before.items():
            short = data.is_floating_point() and data.dtype.itemsize < torch.float32.itemsize
            parameter.data = data.to(torch.float32 if short else data.dtype, copy=True)
        optimizer = config.optimizer.build(backbone.train_part("all").values())
        for batch in islice(batches, config.steps):
            if batch.prompt is None:
                raise ValueError("full_ft reads instruction and input concatenated: set data.with_prompt=true")
            batch = batch.to(backbone.model.device)
            with precision():
                logits = backbone(batch.prompt, batch.labels, TaskAdapter(), batch.task_index)
                loss = prediction_loss(logits, batch.labels).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del optimizer
        backbone.freeze()
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data.to(parameter.device)
            parameter.grad = None
        backbone.freeze()

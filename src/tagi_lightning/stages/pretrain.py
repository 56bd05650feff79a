"""Stage pretrain: the hypernetwork learns from plain text cut into a, b and c (paper section 3, eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from tagi_lightning.backbones import BackboneConfig, GenerationConfig
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig
from tagi_lightning.stages.base import OptimizerConfig
from tagi_lightning.stages.tagi import TagiStage

MEASURED_BATCHES = 32
"""Batches of text whose states are measured where `hypernetwork.standardize` is on."""


class HypernetworkPretraining(TagiStage):
    """Trains hypernetwork and fusion to predict c from b, having read a as an instruction."""

    stage_name = "pretrain"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        tagi: TagiConfig = TagiConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(name="adafactor", lr=1e-3, warmup=0.0),  # noqa: B008
        init_from: str = "none",
    ) -> None:
        """Takes the settings (Table 6: Adafactor, lr 1e-3, 50,000 steps, batch 8).

        Args:
            run: Run folder.
            backbone: The frozen language model.
            tagi: Adapter, hypernetwork, fusion and memory.
            optimizer: Optimizer and schedule.
            init_from: none, or a model folder to start from.

        Raises:
            ValueError: If the backbone is to read the instruction, too, or demonstrations, which text has none of.
        """
        if tagi.reads != "input" or tagi.memory_of != "instruction":
            raise ValueError(
                "pretrain lets a reach the backbone through its adapter alone: set tagi.reads=input and "
                "tagi.memory_of=instruction"
            )
        super().__init__(run, backbone, tagi, optimizer, GenerationConfig(), init_from)

    def instructions_to_measure(self) -> Iterable[Tokens]:
        """Yields the segments a of the first batches."""
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        loader.batch_sampler.take_whole()
        for batch in islice(loader, MEASURED_BATCHES):
            yield batch.instruction

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns eq. 3 over one batch."""
        adapter = self.model.adapt(batch.instruction)
        logits = self.model(batch.input, batch.labels, adapter, batch.task_index)
        loss = prediction_loss(logits, batch.labels).mean()
        self.log_loss("loss", loss, len(batch))
        if self.should_log():
            self.log_adapter(adapter, len(batch))
        return self.weighted(loss)

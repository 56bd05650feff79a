"""Evaluation of one system: decodes its data into rows, and logs their scores; `tagi evaluate` writes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tagi_lightning.backbones import BackboneConfig, GenerationConfig
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.evaluation.controls import Controls, Instructions, check_generates
from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.evaluation.systems import SYSTEMS, SystemRunner, to_predictions
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraBank
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.stages.align import check_categories
from tagi_lightning.stages.base import OptimizerConfig, Stage, resolve_backbone
from tagi_lightning.stages.few_shot import FewShotConfig
from tagi_lightning.stages.sharing import gather, merge_predictions
from tagi_lightning.storage.run_layout import model_folder
from tagi_lightning.storage.serialization import load_bank, load_tagi


class Evaluation(Stage):
    """Decodes the instances of one system after another; `system` says which is next.

    `instructions` gives controls the task set's instructions, and is set before the first system runs.
    """

    stage_name = "evaluate"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008
        systems: tuple[str, ...] = ("no_instruction", "wrong_instruction", "concatenated", "tagi"),
        weights: str = "auto",
        teachers: str = "auto",
        flops: bool = True,
        few_shot: FewShotConfig = FewShotConfig(),  # noqa: B008
    ) -> None:
        """Takes the settings.

        Args:
            run: Run folder.
            backbone: The frozen language model.
            generation: How every system decodes.
            systems: Names of the systems to evaluate.
            weights: Folder of the trained hypernetwork; auto for this run's distilled one.
            teachers: Folder of the teachers; auto for this run's.
            flops: Whether to count operations relative to the concatenated backbone.
            few_shot: How full_ft trains.
        """
        super().__init__(run, backbone, OptimizerConfig())
        self.generation = generation
        self.systems = tuple(systems)
        self.weights = model_folder(self.run, "distill", weights)
        self.teachers = model_folder(self.run, "teachers", teachers)
        self.flops = flops
        self.few_shot = few_shot
        self.system = self.systems[0] if self.systems else ""
        self.rows: list[Prediction] = []
        self.seconds = 0.0
        self.instructions: Instructions | None = None

    def check_length(self) -> None:
        """Accepts any: nothing is trained for a number of steps here."""

    def build(self) -> None:
        """Loads the backbone, and hypernetwork and teachers where a system needs them.

        Raises:
            ValueError: If a system asks for what the model does not have.
            ModelFolderError: If the teachers are those of other categories.
        """
        specs = [SYSTEMS[name] for name in self.systems if name in SYSTEMS]
        self.backbone = self.load_run_backbone()
        self.model = self.bare = bare_model(self.backbone)
        if any(spec.adapter.generates for spec in specs):
            config = resolve_backbone(self.run, self.backbone_config)
            self.model = load_tagi(self.weights, config, self.backbone)
        if any(spec.adapter.replaces_adapter for spec in specs):
            check_generates(self.model)
        bank = self.load_teachers() if any(spec.adapter.uses_teachers for spec in specs) else None
        self.bank = bank
        self.controls = Controls(self.model, bank, self.instructions, self.bare.backbone)
        self.requires_grad_(False)

    def load_teachers(self) -> LoraBank:
        """Loads the teachers.

        Raises:
            ModelFolderError: If they are not there, or damaged.
            ValueError: If they are those of other categories than the present training tasks have.
        """
        bank = load_bank(self.teachers, self.backbone)
        check_categories(bank, self.trainer.datamodule.categories)  # type: ignore[attr-defined]
        return bank

    def runner(self) -> SystemRunner:
        """Returns what runs the present system, with no instruction read yet."""
        spec = SYSTEMS[self.system]
        return SystemRunner(spec, self.model if spec.adapter.generates else self.bare, self.controls)

    def on_test_epoch_start(self) -> None:
        """Starts a system's clock and rows."""
        self._runner = self.runner()
        self.rows = []
        self.seconds = 0.0

    def test_step(self, batch: TaskBatch, batch_index: int) -> None:
        """Decodes one batch; the first one is decoded once before, so that no system's time counts a cold start."""
        if batch_index == 0:
            self.runner().answer(batch, self.generation, self.tokenizer)
        start = time.perf_counter()
        answers = self._runner.answer(batch, self.generation, self.tokenizer)
        self.seconds += time.perf_counter() - start
        find_task = self.trainer.datamodule.find_task  # type: ignore[attr-defined]
        self.rows += to_predictions(batch, answers, self.tokenizer, find_task)

    def on_test_epoch_end(self) -> None:
        """Puts the rows of all devices together, and logs the scores under `test/<system>/`."""
        self.rows = merge_predictions(self.trainer, self.rows, self.folder / self.system)
        self.seconds = max(gather(self.trainer, self.seconds))
        for name, value in aggregate(self.rows)["overall"].items():
            self.log(f"test/{self.system}/{name}", float(value))

    def save(self, folder: Path) -> None:
        """Leaves nothing: an evaluation has no weights."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns nothing: an evaluation has no state."""
        return {}


def bare_model(backbone: Any) -> TagiModel:
    """Returns a model without hypernetwork, fusion and memory: the backbone alone."""
    config = TagiConfig(
        hypernetwork=HypernetworkConfig(enabled=False), fusion=FusionConfig(enabled=False), decoder_memory=False
    )
    return TagiModel(backbone, config)

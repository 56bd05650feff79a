"""Systems that go over the test tasks in several passes: an ensemble's members, and Full FT's data sets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer

from data_modules.evaluation import EvaluationData
from tagi_lightning.evaluation.ensemble import average_predictions
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.stages.evaluate import Evaluation
from tagi_lightning.stages.few_shot import fine_tuned


@dataclass(frozen=True)
class Answered:
    """What a system answered.

    Attributes:
        rows: Its answers.
        seconds: Time that answering took.
        facts: What else its metrics tell.
    """

    rows: list[Prediction]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def answer_once(trainer: Trainer, stage: Evaluation, loader: Any) -> Answered:
    """Answers the instances of one loader."""
    trainer.test(stage, dataloaders=loader, verbose=False, weights_only=True)
    return Answered(stage.rows, stage.seconds)


def answer_by_members(trainer: Trainer, stage: Evaluation, data: EvaluationData) -> Answered:
    """Answers the test tasks once beside each demonstration, and averages.

    Raises:
        ValueError: If the trained model does not read demonstrations, or an instance has no choices.
    """
    stage.configure_model()
    if stage.model.config.reads != "demonstrations":
        raise ValueError(
            f"the system ensemble reads a demonstration before each prompt, and the model in {stage.weights} reads "
            f"{stage.model.config.reads}: train one with tagi.reads=demonstrations"
        )
    members = [answer_once(trainer, stage, loader) for loader in data.members()]
    rows = average_predictions([member.rows for member in members])
    return Answered(rows, sum(member.seconds for member in members), {"members": len(members)})


def answer_by_data_sets(trainer: Trainer, stage: Evaluation, data: EvaluationData) -> Answered:
    """Answers the test tasks data set by data set, each after training the backbone on the demonstrations of it.

    Raises:
        ValueError: If several devices are asked for, or 16 bits that training does not go with.
    """
    if trainer.world_size > 1 or str(trainer.precision).startswith("16"):
        raise ValueError("full_ft trains on one device, in 32-true or bf16-mixed: change --trainer.devices, .precision")
    stage.configure_model()
    config, rows, seconds, trained = stage.few_shot, [], 0.0, 0.0
    loaders = data.few_shot()
    for name, (shots, instances) in loaders.items():
        stage.to(trainer.strategy.root_device)
        count = len(shots.dataset)  # type: ignore[arg-type]  # it has a length, which torch's type does not say
        print(f"evaluate: full_ft trains {config.steps} steps on {count} rows of {name}", flush=True)
        start = time.perf_counter()
        with fine_tuned(stage.bare.backbone, shots.forever(), config, trainer.precision_plugin.forward_context):
            trained += time.perf_counter() - start
            answered = answer_once(trainer, stage, instances)
        rows += answered.rows
        seconds += answered.seconds
    facts = {"few_shot": {"data_sets": len(loaders), "steps": config.steps, "seconds": round(trained, 3)}}
    return Answered(rows, seconds, facts)

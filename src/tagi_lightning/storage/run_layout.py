"""Where things lie in a run folder.

- RUN/<stage>/{config.yaml, run.json, checkpoints, model, tensorboard}
- RUN/model: the distilled hypernetwork, a link
- RUN/evaluate/<system>/{config.yaml, metrics.json, predictions.jsonl}
- RUN/systems/<row>/: the run of a table's row, with what it is in system.yaml
"""

from __future__ import annotations

from pathlib import Path

STAGES = ("pretrain-backbone", "teachers", "pretrain", "align", "distill")
"""The stages that train, in their order; each is a folder of the run."""
CHAIN = STAGES[2:]
"""Those that a system has for itself, one from the weights of another; backbone and teachers are shared by all."""
EVALUATE = "evaluate"
"""The folder of what was evaluated."""
MODEL = "model"
"""What a stage leaves: its weights, as a folder."""

CONFIG_FILE, RUN_FILE, METRICS_FILE = "config.yaml", "run.json", "metrics.json"
PREDICTIONS_FILE, SYSTEM_FILE = "predictions.jsonl", "system.yaml"


def model_folder(run: Path, stage: str, named: str = "auto") -> Path:
    """Returns where a stage's weights are: in the run, or in the folder that is `named` instead of `auto`."""
    return run / stage / MODEL if named == "auto" else Path(named)


def runs_of(model: Path) -> tuple[Path, ...]:
    """Returns the folders that may be the run of a model, RUN/model or RUN/<stage>/model, the nearer one first."""
    return tuple(model.resolve().parents[:2])

"""The training behind an evaluation, from the run.json and config.yaml of its stages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagi_lightning.report.checks import check_record
from tagi_lightning.report.files import ReportError, read_file, read_options
from tagi_lightning.storage.run_layout import CONFIG_FILE, RUN_FILE


@dataclass(frozen=True)
class Training:
    """One stage.

    Attributes:
        folder: RUN/<stage>.
        steps: Steps of the optimizer.
        examples: Examples it saw, steps times batch (of align: instructions); None where the run does not tell.
        parameters: Trained parameters.
        seconds: Duration.
        config: Its options by dotted name.
    """

    folder: Path
    steps: int
    examples: int | None
    parameters: int | None
    seconds: float | None
    config: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """Its name."""
        return self.folder.name


def trainings_of(run: Path, weights: str | None) -> tuple[Training, ...]:
    """Returns the stages that led to `weights`, first to last; empty where there are none on record.

    Args:
        run: Folder the evaluation is in.
        weights: The evaluated weights as metrics.json names them, <run>/<stage>/model.

    Raises:
        ReportError: If a stage's files are damaged.
    """
    chain: list[Training] = []
    stage = locate(run, weights)
    while stage is not None:
        if any(stage == later.folder for later in chain):
            raise ReportError(f"{stage / RUN_FILE}: what it starts from leads back to itself")
        record = read_file(stage / RUN_FILE)
        check_record(stage / RUN_FILE, record)
        steps, batch = record.get("global_step") or 0, record.get("effective_batch")
        examples = steps * batch if batch else None
        options = read_options(stage / CONFIG_FILE)
        chain.append(Training(stage, steps, examples, record.get("trained_parameters"), record.get("seconds"), options))
        stage = locate(stage.parent, record["init_from"])
    return tuple(reversed(chain))


def locate(run: Path, model: str | None) -> Path | None:
    """Returns the stage that made the folder `model`, also where its run was moved; None without a record of it."""
    if model is None:
        return None
    stage = Path(model).parent
    # a run of a table's row stands in RUN/systems/<row>, beside what RUN shares among the rows
    shared = run.parent.parent if run.parent.name == "systems" else run
    places = (stage, run / stage.name, shared / stage.name)
    # unlike Path.is_file, it takes what can be no file's name
    return next((place for place in places if place.name and os.path.isfile(place / RUN_FILE)), None)

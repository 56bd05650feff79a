"""The evaluations found in run folders, each with what describes it and the training behind it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import MAX_CHARACTERS, shortened
from tagi_lightning.options import fits
from tagi_lightning.report.checks import check_answers, check_description, read_metrics
from tagi_lightning.report.files import ReportError, read_file, read_options
from tagi_lightning.report.training import Training, trainings_of
from tagi_lightning.storage.run_layout import CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE, SYSTEM_FILE

MAX_SHOWN = 3
"""How many places with one reason are named."""


@dataclass(frozen=True)
class LeftOut:
    """Something that was found and not reported."""

    where: str
    reason: str


def told(left_out: Sequence[LeftOut]) -> list[str]:
    """Returns a line for each reason, naming the first places that it holds for."""
    places: dict[str, list[str]] = defaultdict(list)
    for item in left_out:
        places[item.reason].append(item.where)
    lines = []
    for reason, found in places.items():
        more = f" and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        lines.append(f"{', '.join(found[:MAX_SHOWN])}{more}: {reason}")
    return lines


@dataclass(frozen=True)
class Result:
    """One system's evaluation in one run.

    Attributes:
        folder: RUN/evaluate/<system>.
        system: What was evaluated.
        seed: Seed of the run.
        metrics: Its metrics.json.
        config: Options of the evaluation by dotted name.
        description: The row's system.yaml; empty where the run is of no table.
        data: Digest of the instances that were answered, with their tasks and references; for held-out instances, which
            differ from seed to seed, the tasks with their numbers of instances.
        trainings: The stages behind the weights, first to last; empty where nothing was trained for the system.
    """

    folder: Path
    system: str
    seed: int
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    description: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    trainings: tuple[Training, ...] = ()

    @property
    def examples(self) -> int | None:
        """Examples that the last stage of training saw; None where nothing was trained or the run does not tell."""
        return self.trainings[-1].examples if self.trainings else None

    @property
    def stored(self) -> str:
        """How the backbone's weights were stored."""
        return str(self.config.get("backbone.quantization") or self.config.get("backbone.dtype", "float32"))

    @property
    def backbone(self) -> str:
        """The backbone as the run named it, with how its weights were stored."""
        name = str(self.config.get("backbone.name"))
        if name.startswith("RUN/"):
            run = self.folder.parent.parent
            shared = run.parent.parent if run.parent.name == "systems" else run
            name = f"{re.sub(r'-s[0-9]+$', '', shared.resolve().name)} from scratch"
        return name if self.stored == "float32" else f"{name} in {self.stored}"

    @property
    def setting(self) -> str:
        """What instructions show."""
        return str(self.config.get("setting", "def"))

    @property
    def templated(self) -> bool:
        """Whether every task counts the same, as in P3, rather than every instance."""
        return "by_template" in self.metrics or "accuracy_mean" in self.metrics["overall"]


def read_results(runs: Sequence[str | Path], held_out: Collection[str] = ()) -> tuple[list[Result], list[LeftOut]]:
    """Reads every evaluation under run folders, RUN/evaluate/<system> and RUN/systems/<row>/evaluate/<system>.

    Args:
        runs: Run folders; one named twice is read once.
        held_out: Systems evaluated on instances of the training tasks, which every seed draws for itself.

    Returns:
        The evaluations, folder by folder, and those that cannot be read, with why.

    Raises:
        ReportError: If a folder is not there or holds no evaluation; all of them are named.
    """
    results, left_out, empty = [], [], []
    for run in dict.fromkeys(Path(run) for run in runs):
        folders = sorted(path for path in (*run.glob("evaluate/*"), *run.glob("systems/*/evaluate/*")) if path.is_dir())
        if not any((folder / METRICS_FILE).is_file() for folder in folders):
            empty.append(f"{run} {'holds no evaluate/<system>/metrics.json' if run.is_dir() else 'is not there'}")
        for folder in folders:
            try:
                results.append(read_result(folder, held_out))
            except (ReportError, OSError) as error:
                left_out.append(LeftOut(str(folder), shortened(str(error), 2 * MAX_CHARACTERS)))
    if empty:
        raise ReportError("; ".join(empty) + ": evaluate first (make evaluate RUN=<folder>), or leave it out of --runs")
    return results, left_out


def read_result(folder: Path, held_out: Collection[str] = ()) -> Result:
    """Reads one evaluation; `held_out` as in `read_results`.

    Raises:
        ReportError: If a file is missing, damaged or of an older layout.
    """
    metrics = read_metrics(folder / METRICS_FILE)
    run = folder.parent.parent
    described = run / SYSTEM_FILE
    keys, answered = read_answers(folder / PREDICTIONS_FILE)
    check_answers(folder / METRICS_FILE, metrics, answered)
    description = read_file(described) if described.is_file() else {}
    check_description(described, description)
    data = digest(keys)
    if metrics["system"] in held_out:
        data = f"held out: {sorted((task, row['n']) for task, row in metrics['by_task'].items())}"
    return Result(
        folder=folder,
        system=str(metrics["system"]),
        seed=int(metrics["seed"]),
        metrics=metrics,
        config=read_options(folder / CONFIG_FILE),
        description=description,
        data=data,
        trainings=trainings_of(run, metrics.get("weights")),
    )


def digest(keys: Sequence[str]) -> str:
    """Returns a digest of texts in any order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:12]


def read_answers(path: Path) -> tuple[list[str], Counter[str]]:
    """Returns what was answered in each row of a predictions file, and the rows of each task; of P3, of each data set.

    Raises:
        ReportError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise ReportError(f"there is no {path}")
    keys, answered = [], Counter[str]()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line.decode(), half_characters=True)
                keys.append(json.dumps([row["task"], row["id"], row["references"]]))
                if not fits(task := row.get("dataset") or row["task"], str):
                    raise TypeError("a task's name is no text")
                answered[task] += 1
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ReportError(f"{path}:{number} is damaged ({shortened(repr(error))})") from error
    return keys, answered

"""What the files of a run must hold for a report: the types that it computes with, and figures that agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits
from tagi_lightning.report.files import ReportError

GROUPS = ("by_task", "by_category", "by_template")
TEXTS = ("weights", "backbone_digest")
NUMBERS = ("seconds", "relative_flops", "relative_flops_formula")
RECORD = dict.fromkeys(("global_step", "effective_batch", "trained_parameters"), int | None) | {"seconds": float | None}


def check_metrics(path: Path, metrics: Mapping[str, Any], answered: Mapping[str, int]) -> None:
    """Refuses a metrics.json whose figures cannot be computed with.

    Args:
        path: The file.
        metrics: What it holds.
        answered: Answers of each task in the predictions beside it.

    Raises:
        ReportError: If a value is of another type, or not of the answers beside it.
    """
    wrong = [key for key in GROUPS if not is_mapping_of_scores(metrics.get(key, {}))]
    wrong += [key for key in TEXTS if not fits(metrics.get(key), str | None)]
    wrong += [key for key in NUMBERS if not fits(metrics.get(key), float | None)]
    wrong += [] if is_scores(metrics["overall"]) else ["overall"]
    wrong += [key for key, kind in (("system", str), ("seed", int)) if not fits(metrics[key], kind)]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are): evaluate again")
    if metrics["overall"]["n"] != sum(answered.values()):
        told = f"{path.name} tells of {metrics['overall']['n']} answers"
        raise ReportError(f"{told}, predictions.jsonl of {sum(answered.values())}")
    if differing := [task for task in {**answered, **metrics["by_task"]} if answered.get(task) != count(metrics, task)]:
        raise ReportError(f"{path} tells of other answers to {shortened(differing[0])} than predictions.jsonl")
    figures = {name for name in metrics["overall"] if not name.startswith("accuracy")}
    if lacking := [task for task, row in metrics["by_task"].items() if not figures <= row.keys()]:
        raise ReportError(f"{path} is damaged ({shortened(lacking[0])} lacks a score): evaluate again")


def count(metrics: Mapping[str, Any], task: str) -> int | None:
    """Returns the answers of a task, None where there are none."""
    row = metrics["by_task"].get(task)
    return None if row is None else int(row["n"])


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Refuses a stage's run.json whose figures cannot be computed with.

    Raises:
        ReportError: If one is of another type.
    """
    wrong = [key for key, kind in RECORD.items() if not fits(record.get(key), kind)]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are)")


def check_description(path: Path, description: Mapping[str, Any]) -> None:
    """Refuses a system.yaml that does not tell which row of a table a run is.

    Raises:
        ReportError: If name or title are no text, or the overrides no options.
    """
    wrong = [key for key in ("name", "title") if not fits(description.get(key), str | None)]
    wrong += [] if is_plain(description.get("overrides")) else ["overrides"]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are)")


def is_scores(row: Any) -> bool:
    """Tells whether a value is finite scores by name with a number of answers."""
    return isinstance(row, dict) and all(fits(value, float) for value in row.values()) and fits(row.get("n"), int)


def is_mapping_of_scores(groups: Any) -> bool:
    """Tells whether a value is scores by group."""
    return isinstance(groups, dict) and all(map(is_scores, groups.values()))


def is_plain(value: Any) -> bool:
    """Tells whether a value is one of JSON."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    return isinstance(value, str | int | float | None)

"""What the files of a run must hold for a report: the types that it computes with, and figures that agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits
from tagi_lightning.report.files import ReportError, read_file

GROUPS = ("by_task", "by_category", "by_template")
TEXTS = ("weights", "backbone_digest")
NUMBERS = ("seconds", "relative_flops", "relative_flops_formula")
RECORD = dict.fromkeys(("global_step", "effective_batch", "trained_parameters"), int | None) | {
    "seconds": float | None,
    "init_from": str | None,
}


def read_metrics(path: Path) -> dict[str, Any]:
    """Returns what a metrics.json holds.

    Raises:
        ReportError: If it is missing, damaged, of an older layout, or its figures cannot be computed with.
    """
    metrics = read_file(path)
    if missing := missing_keys(metrics):
        raise ReportError(f"{path} is of an older layout, without {', '.join(missing)}: evaluate again")
    wrong = [key for key in GROUPS if not is_mapping_of_scores(metrics.get(key, {}))]
    wrong += [key for key in TEXTS if not fits(metrics.get(key), str | None)]
    wrong += [key for key in NUMBERS if not fits(metrics.get(key), float | None)]
    wrong += [] if is_scores(metrics["overall"]) else ["overall"]
    wrong += [key for key, kind in (("system", str), ("seed", int)) if not fits(metrics[key], kind)]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are): evaluate again")
    return metrics


def missing_keys(metrics: Mapping[str, Any]) -> list[str]:
    """Lists the keys that today's metrics.json has and `metrics` lacks."""
    needed = ["overall", "by_task", "system", "seed", *(["backbone_digest"] if "seconds" in metrics else [])]
    if missing := [key for key in needed if metrics.get(key) is None]:
        return missing
    by_task = metrics["by_task"] if isinstance(metrics["by_task"], dict) else {}
    groups = {"overall": metrics["overall"], **{f"by_task.{name}": row for name, row in by_task.items()}}
    return [f"{shortened(name)}.n" for name, row in groups.items() if isinstance(row, dict) and "n" not in row][:3]


def check_answers(path: Path, metrics: Mapping[str, Any], answered: Mapping[str, int]) -> None:
    """Refuses a metrics.json that is not of the predictions beside it.

    Args:
        path: The file.
        metrics: What it holds.
        answered: Answers of each task in the predictions.

    Raises:
        ReportError: If it tells of other answers, or a task lacks a score.
    """
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
    """Refuses a stage's run.json of an older layout, or whose figures cannot be computed with.

    Raises:
        ReportError: If it does not tell what the stage started from, or a figure is of another type.
    """
    if "init_from" not in record:
        raise ReportError(f"{path} is of an older layout, without init_from: train again")
    wrong = [key for key, kind in RECORD.items() if not fits(record.get(key), kind)]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are)")


def check_description(path: Path, description: Mapping[str, Any]) -> None:
    """Refuses a system.yaml that does not tell which row of a table a run is.

    Raises:
        ReportError: If name or title are no text.
    """
    wrong = [key for key in ("name", "title") if not fits(description.get(key), str | None)]
    if wrong:
        raise ReportError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are)")


def is_scores(row: Any) -> bool:
    """Tells whether a value is finite scores by name with a number of answers."""
    return isinstance(row, dict) and all(fits(value, float) for value in row.values()) and fits(row.get("n"), int)


def is_mapping_of_scores(groups: Any) -> bool:
    """Tells whether a value is scores by group."""
    return isinstance(groups, dict) and all(map(is_scores, groups.values()))

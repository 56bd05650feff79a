"""A table's file, EXPERIMENTS/tables/<name>.yaml, as `tagi reproduce` runs it and `tagi report` fills it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits
from tagi_lightning.report.files import ReportError, read_file

TABLE: dict[str, Any] = {
    "title": str,
    "paper": str | None,
    "metric": str,
    "settings": list[str],
    "rows": list,
    "budget": dict,
    "tasksets": dict | None,
    "allow_budgets": bool,
}
TASKSET: dict[str, Any] = {"settings": list[str], "budget": dict}
ROW: dict[str, Any] = {
    "title": str,
    "system": str,
    "evaluate": str,
    "overrides": dict | None,
    "paper": str | None,
    "reference": bool,
}
"""What a table, its changes for a task set, and its rows may hold, with the types."""


def read_table_file(name: str, experiments: Path, taskset: str | None) -> tuple[Path, dict[str, Any]]:
    """Reads `<name>-<taskset>.yaml` among the tables, or `<name>.yaml` where there is none for the task set.

    Returns:
        The file, and what it holds.

    Raises:
        ReportError: If there is no such table, or it is not as a table must be.
    """
    folder = experiments / "tables"
    path = next((file for file in (folder / f"{name}-{taskset}.yaml", folder / f"{name}.yaml") if file.is_file()), None)
    if path is None:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or f"none in {folder}"
        raise ReportError(f"unknown table {name!r}; choose from: {known}")
    values = read_file(path)
    check_keys(values, TABLE, ("title", "metric", "rows"), str(path))
    for number, entry in enumerate(values["rows"], 1):
        check_keys(entry, ROW, ("title", "system", "evaluate"), f"{path}: row {number}")
    for own, changes in (values.get("tasksets") or {}).items():
        check_keys(changes or {}, TASKSET, (), f"{path}: tasksets.{shortened(own)}")
    return path, values


def check_keys(values: Any, types: Mapping[str, Any], needed: tuple[str, ...], where: str) -> None:
    """Refuses what is no mapping of known names to values of their types.

    Raises:
        ReportError: If it is none; the message names it, what is wrong and what is allowed.
    """
    if not isinstance(values, dict):
        raise ReportError(f"{where} is no mapping")
    if unknown := sorted(values.keys() - types.keys()):
        told = shortened(", ".join(unknown))
        raise ReportError(f"{where}: unknown keys {told}; choose from {', '.join(sorted(types))}")
    if missing := [key for key in needed if key not in values]:
        raise ReportError(f"{where} has no {', '.join(missing)}")
    for key, value in values.items():
        if not fits(value, types[key]):
            kind = getattr(types[key], "__name__", str(types[key]))
            raise ReportError(f"{where}: {key} cannot be {shortened(repr(value))}, expected {kind}")

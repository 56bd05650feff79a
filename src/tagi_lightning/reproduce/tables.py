"""A table: which systems, evaluated how, in which settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.reproduce.systems import System, load_system

SETTINGS = ("def", "def+2pos")

TABLE_KEYS = frozenset({"title", "paper", "metric", "settings", "rows", "budget", "tasksets", "allow_budgets"})
ROW_KEYS = frozenset({"title", "system", "evaluate", "overrides", "paper", "reference"})

LONGEST = 100
"""Characters of a folder's name at most."""


@dataclass(frozen=True)
class Row:
    """One row of a table in one setting.

    Attributes:
        title: What the table calls it.
        system: The system, overrides included.
        evaluate: The system of `tagi evaluate` whose score it shows.
        setting: What instructions show.
        overrides: What the row changes of the system's file.
    """

    title: str
    system: System
    evaluate: str
    setting: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Name of the row's folder; rows that differ in title or in what is evaluated alone share one."""
        parts = [self.system.name, *sorted(f"{key}={value}" for key, value in leaves(self.overrides))]
        if self.setting != "def":
            parts.append(self.setting)
        slug = "__".join(parts).replace("/", "-").replace(" ", "-")
        return slug if len(slug) <= LONGEST else f"{self.system.name}__{digest(parts)}"


@dataclass(frozen=True)
class Table:
    """A table's rows, before they are multiplied by settings.

    Attributes:
        name: Its file's name.
        title: Heading.
        settings: Settings of every row.
        rows: Rows in the first setting.
        budget: Steps by stage, and by `evaluate` the instances of a test task, where they are not those of the size.
    """

    name: str
    title: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    budget: Mapping[str, int] = field(default_factory=dict)


def digest(values: Any) -> str:
    """Returns eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields dotted names, without `model` and `init_args`, and what they are set to."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            prefix = "" if key in ("model", "init_args") else f"{key}."
            yield from ((f"{prefix}{name}", leaf) for name, leaf in leaves(value))
        elif isinstance(value, list):
            yield key, ",".join(map(str, value))
        else:
            yield key, str(value).lower()


def load_table(name: str, taskset: str, experiments: Path) -> Table:
    """Reads EXPERIMENTS/tables/<name>-<taskset>.yaml, or <name>.yaml where there is none for the task set.

    Raises:
        FileNotFoundError: If there is neither; the message lists the tables there are.
        ValueError: If a key or setting is unknown, or the table is not for the task set.
    """
    folder = experiments / "tables"
    path = next((p for p in (folder / f"{name}-{taskset}.yaml", folder / f"{name}.yaml") if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise FileNotFoundError(f"there is no table {name!r} in {folder}; choose from {known}, all")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_keys(values, TABLE_KEYS, ("title", "metric", "rows"), str(path))
    tasksets = values.get("tasksets") or {taskset: {}}
    if taskset not in tasksets:
        raise ValueError(f"table {path.stem} is for {', '.join(tasksets)}, not for {taskset}")
    own = tasksets[taskset] or {}
    _check_keys(own, frozenset({"settings", "budget"}), (), f"{path}: tasksets.{taskset}")
    settings = tuple(own.get("settings", values.get("settings", ["def"])))
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; choose from {', '.join(SETTINGS)}")
    rows = tuple(
        _row(entry, settings[0], experiments, f"{path}: row {number}") for number, entry in enumerate(values["rows"], 1)
    )
    return Table(path.stem, values["title"], settings, rows, own.get("budget", values.get("budget", {})))


def table_names(taskset: str, experiments: Path) -> tuple[str, ...]:
    """Returns the tables that `all` stands for: those that go with the task set."""
    found = []
    for file in sorted((experiments / "tables").glob("*.yaml")):
        name, _, own = file.stem.partition("-")
        tasksets = yaml.safe_load(file.read_text(encoding="utf-8")).get("tasksets") or {taskset: {}}
        if taskset in tasksets and own in ("", taskset):
            found.append(name)
    return tuple(dict.fromkeys(found))


def _row(entry: Mapping[str, Any], setting: str, experiments: Path, where: str) -> Row:
    _check_keys(entry, ROW_KEYS, ("title", "system", "evaluate"), where)
    overrides = entry.get("overrides") or {}
    system = load_system(experiments / "systems" / f"{entry['system']}.yaml").with_overrides(overrides)
    return Row(entry["title"], system, entry["evaluate"], setting, overrides)


def _check_keys(values: Any, known: frozenset[str], needed: tuple[str, ...], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is no mapping")
    if unknown := sorted(map(str, values.keys() - known)):
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"{where} has no {', '.join(missing)}")

"""A table: which systems, evaluated how, in which settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.data.task import SETTINGS
from tagi_lightning.options import fits
from tagi_lightning.report.table_file import read_table_file
from tagi_lightning.reproduce.systems import System, load_system

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
        FileNotFoundError: If a row's system is not there; the message lists those there are.
        ValueError: If there is no such table, it is not as a table must be, or it is not for the task set.
    """
    path, values = read_table_file(name, experiments, taskset)
    tasksets = values.get("tasksets") or {taskset: {}}
    if taskset not in tasksets:
        raise ValueError(f"table {path.stem} is for {shortened(', '.join(tasksets))}, not for {taskset}")
    own = tasksets[taskset] or {}
    settings = tuple(own.get("settings", values.get("settings", ["def"])))
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        told = shortened(", ".join(unknown))
        raise ValueError(f"{path}: unknown settings {told}; choose from {', '.join(SETTINGS)}")
    budget = own.get("budget", values.get("budget", {}))
    if wrong := [stage for stage, count in budget.items() if not fits(count, int)]:
        raise ValueError(f"{path}: the budget of {shortened(', '.join(wrong))} is no whole number")
    if not settings or not values["rows"]:
        raise ValueError(f"{path} has no {'rows' if settings else 'settings'}")
    rows = tuple(
        _row(entry, settings[0], experiments, f"{path}: row {number}") for number, entry in enumerate(values["rows"], 1)
    )
    return Table(path.stem, values["title"], settings, rows, budget)


def table_names(taskset: str, experiments: Path) -> tuple[str, ...]:
    """Returns the tables that `all` stands for: those that go with the task set.

    Raises:
        ValueError: If one is not as a table must be.
    """
    found = []
    for file in sorted((experiments / "tables").glob("*.yaml")):
        name, _, own = file.stem.partition("-")
        tasksets = read_table_file(file.stem, experiments, None)[1].get("tasksets") or {taskset: {}}
        if taskset in tasksets and own in ("", taskset):
            found.append(name)
    return tuple(dict.fromkeys(found))


def _row(entry: Mapping[str, Any], setting: str, experiments: Path, where: str) -> Row:
    overrides = entry.get("overrides") or {}
    try:
        system = load_system(experiments / "systems" / f"{entry['system']}.yaml").with_overrides(overrides)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{where}: {error}") from error
    return Row(entry["title"], system, entry["evaluate"], setting, overrides)

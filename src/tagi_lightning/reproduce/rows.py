"""A table's rows as they are run: each a system with its changes, in one setting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.report.table_file import read_table_file
from tagi_lightning.report.tables import Table
from tagi_lightning.reproduce.systems import System, load_system

LONGEST = 100
"""Characters of a folder's name at most."""


@dataclass(frozen=True)
class PlannedRow:
    """One row of a table, in one setting, with its system.

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


def planned_rows(table: Table, setting: str, experiments: Path) -> list[PlannedRow]:
    """Returns a table's rows with their systems, in one setting.

    Raises:
        FileNotFoundError: If a row's system is not there; the message lists those there are.
        ValueError: If a row's system is none, or what it changes is nothing that a system has.
    """
    rows = []
    for row in table.rows:
        try:
            system = load_system(experiments / "systems" / f"{row.system}.yaml").with_overrides(row.changes)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"row {shortened(row.title)!r} of {table.title!r}: {error}") from error
        rows.append(PlannedRow(row.title, system, row.evaluate, setting, row.changes))
    return rows


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

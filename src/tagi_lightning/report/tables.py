"""A table to be filled: its rows, and which evaluations belong to each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.report.files import ReportError
from tagi_lightning.report.results import Result
from tagi_lightning.report.table_file import read_table_file

METRIC_TITLES = {
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "exact_match": "exact match",
    "accuracy_mean": "accuracy, ranked by mean log-probability",
    "accuracy_sum": "accuracy, ranked by summed log-probability",
}
"""Scores a table may show, with their headings."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        title: What it is called.
        evaluate: The evaluated system.
        system: Name in the run's system.yaml; None for a run of no table.
        overrides: What the row changes of that system, as JSON; empty where nothing.
        paper: Its row among the paper's figures, of the table's paper table unless it says <table>/<row>.
    """

    title: str
    evaluate: str
    system: str | None = None
    overrides: str = ""
    paper: str | None = None

    def holds(self, result: Result) -> bool:
        """Whether an evaluation belongs to this row."""
        described = result.description
        mine = (self.evaluate, self.system, self.overrides)
        return mine == (result.system, described.get("name"), canonical(described.get("overrides")))


@dataclass(frozen=True)
class Table:
    """What a report shows.

    Attributes:
        title: Heading.
        metric: Score of the cells, a key of metrics.json.
        rows: The rows in order.
        reference: Title of the row that all others are compared with; None where there is none.
        paper: Table of the paper that rows name, a key of paper.yaml.
        settings: The settings it is made of; empty for any.
        allow_budgets: Whether rows that saw another number of examples than the reference stay, marked.
        named: Whether its rows were asked for, so that those without a result are told.
    """

    title: str
    metric: str
    rows: tuple[Row, ...]
    reference: str | None
    paper: str | None = None
    settings: tuple[str, ...] = ()
    allow_budgets: bool = False
    named: bool = False


def read_table(name: str, experiments: Path, taskset: str | None = None) -> Table:
    """Reads `<experiments>/tables/<name>-<taskset>.yaml`, or `<name>.yaml` where there is none for the task set.

    Raises:
        ReportError: If there is no such table, or it is not as a table must be.
    """
    path, values = read_table_file(name, experiments, taskset)
    if values["metric"] not in METRIC_TITLES:
        told = shortened(repr(values["metric"]))
        raise ReportError(f"{path}: metric {told} is unknown; choose from {', '.join(METRIC_TITLES)}")
    rows, reference = [], None
    for entry in values["rows"]:
        overrides = canonical(entry.get("overrides"))
        rows.append(Row(entry["title"], entry["evaluate"], entry["system"], overrides, entry.get("paper")))
        if entry.get("reference"):
            reference = rows[-1].title
    if len({row.title for row in rows}) < len(rows):
        raise ReportError(f"{path}: two rows have the same title")
    return Table(
        title=values["title"],
        metric=values["metric"],
        rows=tuple(rows),
        reference=reference or default_reference(rows),
        paper=values.get("paper"),
        settings=tuple(values.get("settings", ())),
        allow_budgets=bool(values.get("allow_budgets", False)),
        named=True,
    )


def table_of(results: Sequence[Result], titles: Mapping[str, str]) -> Table:
    """Returns a table with a row for everything that was evaluated.

    Args:
        results: What was found.
        titles: What systems are called, in the order their rows are to stand in.
    """
    order = {name: place for place, name in enumerate(titles)}
    rows: dict[tuple[str | None, int, str], Row] = {}
    for result in results:
        name, overrides = result.description.get("name"), canonical(result.description.get("overrides"))
        title = titles.get(result.system, result.system)
        if name is not None:
            own = str(result.description.get("title", name))
            title = own if result.system == "tagi" else f"{own}: {title}"
        key = (name, order.get(result.system, len(order)), f"{result.system} {overrides}")
        if any(row.title == title for other, row in rows.items() if other != key):
            title = f"{title} ({result.folder.parent.parent.name})"
        rows.setdefault(key, Row(title, result.system, name, overrides))
    # what stands in the run itself comes before the rows of tables
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (key[0] or "", *key[1:]))]
    ranked = any("accuracy_mean" in result.metrics["overall"] for result in results)
    metric = "accuracy_mean" if ranked else "rougeL"
    return Table("Evaluated systems", metric, tuple(ordered), default_reference(ordered))


def default_reference(rows: Iterable[Row]) -> str | None:
    """Returns the title of the row where TAGI itself is evaluated, None where there is none."""
    candidates = [row for row in rows if row.evaluate == "tagi"]
    candidates.sort(key=lambda row: (row.system not in (None, "tagi"), row.overrides != ""))
    return candidates[0].title if candidates else None


def canonical(overrides: Any) -> str:
    """Returns overrides as text that does not depend on the order of their keys; empty where there are none."""
    return json.dumps(overrides, sort_keys=True) if overrides else ""

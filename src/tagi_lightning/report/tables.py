"""A table to be run and filled: its rows, and which evaluations belong to each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import shortened
from tagi_lightning.data.task import checked_settings
from tagi_lightning.evaluation.benchmarks import paper_table, paper_tables
from tagi_lightning.options import fits
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

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes of the system."""
        changes: dict[str, Any] = json.loads(self.overrides or "{}")
        return changes

    def holds(self, result: Result) -> bool:
        """Whether an evaluation belongs to this row."""
        described = result.description
        mine = (self.evaluate, self.system, self.overrides)
        return mine == (result.system, described.get("name"), canonical(described.get("overrides")))


@dataclass(frozen=True)
class Table:
    """What is run, and what a report shows.

    Attributes:
        title: Heading.
        metric: Score of the cells, a key of metrics.json.
        rows: The rows in order.
        reference: Title of the row that all others are compared with; None where there is none.
        paper: Table of the paper that rows name, a key of paper.yaml.
        settings: The settings it is made of; empty for any.
        allow_budgets: Whether rows that saw another number of examples than the reference stay, marked.
        named: Whether its rows were asked for, so that those without a result are told.
        budget: Steps by stage, and by `evaluate` the instances of a test task, where they are not those of the size.
    """

    title: str
    metric: str
    rows: tuple[Row, ...]
    reference: str | None
    paper: str | None = None
    settings: tuple[str, ...] = ()
    allow_budgets: bool = False
    named: bool = False
    budget: Mapping[str, int] = field(default_factory=dict)


def read_table(name: str, experiments: Path, taskset: str | None = None) -> Table:
    """Reads `<experiments>/tables/<name>-<taskset>.yaml`, or `<name>.yaml` where there is none for the task set.

    Raises:
        ReportError: If there is no such table, it is not as a table must be, or it is not for the task set.
    """
    path, values = read_table_file(name, experiments, taskset)
    if taskset is not None:
        tasksets = values.get("tasksets") or {taskset: None}
        if taskset not in tasksets:
            raise ReportError(f"table {path.stem} is for {shortened(', '.join(tasksets))}, not for {taskset}")
        values |= tasksets[taskset] or {}
    settings, budget = values.get("settings", ["def"]), values.get("budget", {})
    try:
        check_values(values["metric"], settings, budget)
    except ValueError as error:
        raise ReportError(f"{path}: {shortened(str(error))}") from error
    if not settings or not values["rows"]:
        raise ReportError(f"{path} has no {'rows' if settings else 'settings'}")
    rows, reference = [], None
    for entry in values["rows"]:
        overrides = canonical(entry.get("overrides"))
        rows.append(Row(entry["title"], entry["evaluate"], entry["system"], overrides, entry.get("paper")))
        if entry.get("reference"):
            reference = rows[-1].title
    if len({row.title for row in rows}) < len(rows):
        raise ReportError(f"{path}: two rows have the same title")
    table = Table(
        title=values["title"],
        metric=values["metric"],
        rows=tuple(rows),
        reference=reference or default_reference(rows),
        paper=values.get("paper"),
        settings=tuple(settings),
        allow_budgets=bool(values.get("allow_budgets", False)),
        named=True,
        budget=budget,
    )
    try:
        for row in rows:
            paper_rows(table, row)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from error
    return table


def check_values(metric: str, settings: Sequence[str], budget: Mapping[str, Any]) -> None:
    """Refuses a table's choices that there are not.

    Raises:
        ValueError: If one is none; the message lists those there are.
    """
    if metric not in METRIC_TITLES:
        raise ValueError(f"metric {shortened(repr(metric))} is unknown; choose from {', '.join(METRIC_TITLES)}")
    checked_settings(settings)
    if wrong := [stage for stage, count in budget.items() if not fits(count, int)]:
        raise ValueError(f"the budget of {shortened(', '.join(wrong))} is no whole number")


def paper_rows(table: Table, row: Row) -> tuple[str, list[dict[str, Any]]]:
    """Returns the paper's table and its lines, one a size, for a row of ours; no lines where the row names none.

    Raises:
        ReportError: If the paper has no such table, or its table no such row.
    """
    if row.paper is None:
        return "", []
    key, _, name = row.paper.partition("/")
    if key not in paper_tables():
        key, name = table.paper or "", row.paper
    if key not in paper_tables():
        raise ReportError(
            f"row {shortened(row.title)!r}: the paper's figures have no {shortened(key)!r}; there are "
            f"{', '.join(paper_tables())}"
        )
    lines = paper_table(key)
    found = [line for line in lines if line["row"] == name]
    if not found:
        known = ", ".join(dict.fromkeys(str(line["row"]) for line in lines))
        told = f"the paper's {key} has no row {shortened(name)!r}; it has {known}"
        raise ReportError(f"row {shortened(row.title)!r}: {told}")
    return key, found


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

"""The paper's own figure for a cell of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tagi_lightning.evaluation.benchmarks import MTEST11
from tagi_lightning.report.columns import Column
from tagi_lightning.report.tables import Row, Table, paper_rows

SIZES = ("base", "large", "xl", "xxl")
P3 = ("MTest11", "p3", "HyperT5")
"""What the paper's tables call an average over P3's test tasks; a table is read by the first it has."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure as the paper prints it.

    Attributes:
        table: `Table 2`.
        size: Size of the paper's backbone.
        value: The figure.
        source: TAGI for the paper's own run, else the paper it quotes.
        name: What of P3 it averages; empty for ROUGE-L.
    """

    table: str
    size: str
    value: float
    source: str
    name: str = ""

    def __str__(self) -> str:
        quoted = "" if self.source == "TAGI" else f", source {self.source}"
        return f"{self.value:g} ({self.name + ', ' if self.name else ''}{self.size}{quoted})"


def paper_figures(table: Table, row: Row, column: Column) -> list[PaperFigure]:
    """Returns the paper's figures beside a cell: of the backbone's size, of all sizes where it has none of them."""
    key, lines = paper_rows(table, row)
    first = column.cells[0].first
    tasks = [task for task in MTEST11 if task in first.metrics["by_task"]]
    figures = []
    for line in of_size(lines, column.backbone):
        if not first.templated:
            name, value = "", line.get(column.setting)
        elif 0 < len(tasks) < len(MTEST11):
            # averaged over the same tasks as ours, where the paper prints all of them
            name = f"mean of the same {len(tasks)} tasks"
            value = round(fmean(line[task] for task in tasks), 1) if line.keys() >= set(tasks) else None
        else:
            name = next((name for name in P3 if name in line), "")
            value = line.get(name)
        if value is not None:
            figures.append(PaperFigure(table_title(key), line["size"], value, line["source"], name))
    return figures


def paper_cost(table: Table, row: Row, column: Column, key: str) -> float | None:
    """Returns the paper's relative_flops or relative_time of a row, where it tells it."""
    _, lines = paper_rows(table, row)
    return next((line[key] for line in of_size(lines, column.backbone) if key in line), None)


def of_size(lines: Sequence[dict[str, Any]], backbone: str) -> list[dict[str, Any]]:
    """Returns the lines of the backbone's own size, all where it is of none."""
    words = re.split(r"[^a-z0-9]+", backbone.lower())
    size = next((size for size in SIZES if size in words), None)
    return [line for line in lines if size is None or line["size"] == size]


def table_title(key: str) -> str:
    """Returns `Table 2` for table2 and `Figure 3` for figure3."""
    return re.sub(r"(\d+)$", r" \1", key).capitalize()

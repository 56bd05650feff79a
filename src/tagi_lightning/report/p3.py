"""P3 by data set, as Table 10 prints it."""

from __future__ import annotations

from collections import defaultdict

from tagi_lightning.evaluation.benchmarks import MTEST11, table10_row
from tagi_lightning.markdown import aligned_table, mean_spread, number, without_empty
from tagi_lightning.report.columns import Cell, Column, mean_and_std
from tagi_lightning.report.paper import of_size
from tagi_lightning.report.tables import Table, paper_rows


def p3_table(table: Table, column: Column) -> str:
    """Returns accuracies by data set with MTest11 and HyperT5's average, the paper's below; empty for other tasks."""
    if not table.metric.startswith("accuracy") or not set(MTEST11) & set(column.cells[0].first.metrics["by_task"]):
        return ""
    columns = list(table10_row({}))
    lines = [["system", *columns]]
    for cell in column.cells:
        found = cell_row(cell, table.metric)
        lines.append(
            [cell.row.title, *(mean_spread(*mean_and_std(found[name]), 1) if found[name] else "-" for name in columns)]
        )
    for cell in column.cells:
        for line in of_size(paper_rows(table, cell.row)[1], column.backbone):
            printed = table10_row(line) | {name: line[name] for name in columns if name in line}
            quoted = "" if line["source"] == "TAGI" else f", source {line['source']}"
            name = f"paper: {line['row']} ({line['size']}{quoted})"
            row = [name, *(number(printed[column], 1) for column in columns)]
            if row not in lines:  # several of our rows may stand beside one of the paper's
                lines.append(row)
    return aligned_table(without_empty(lines))


def cell_row(cell: Cell, metric: str) -> dict[str, list[float]]:
    """Returns the columns of Table 10 of every seed."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in cell.seeds:
        for name, value in table10_row(cell.by_group("by_task", metric, [seed])).items():
            if value is not None:
                found[name].append(value)
    return found

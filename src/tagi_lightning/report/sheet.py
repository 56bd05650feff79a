"""The figures of a report as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from tagi_lightning.report.columns import Column
from tagi_lightning.report.figures import Line
from tagi_lightning.report.paper import SIZES
from tagi_lightning.report.tables import Table


def report_csv(table: Table, columns: Sequence[tuple[Column, list[Line]]], provenance: Sequence[str]) -> str:
    """Returns one line a row and column; figures the report does not have are empty."""
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in provenance)
    records = [record(table, column, line) for column, lines in columns for line in lines]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def record(table: Table, column: Column, line: Line) -> dict[str, Any]:
    """Returns the values of one line by column, to four decimals."""
    trainings, found = line.cell.first.trainings, line.difference
    seconds, seconds_std = line.seconds or (None, None)
    values: dict[str, Any] = {
        "system": line.cell.row.title,
        "backbone": column.backbone,
        "setting": column.setting,
        "metric": table.metric,
        "mean": line.mean,
        "std": line.deviation,
        "seeds": " ".join(map(str, line.cell.seeds)),
        "instances": line.instances,
        "tasks": line.tasks,
        "relative_flops": line.flops,
        "seconds": seconds,
        "seconds_std": seconds_std,
        "relative_time": line.relative_time,
        "examples": line.cell.first.examples,
        "other_budget": line.cell.other_budget,
        "trained_parameters": line.parameters,
        "training_seconds": sum(t.seconds or 0.0 for t in trainings) if trainings else None,
        "reference_minus_this": found and found.mean,
        "low": found and found.low,
        "high": found and found.high,
        "detectable": found and found.detectable,
        "paired_seeds": " ".join(map(str, line.paired_seeds)),
        "paper_table": line.paper[0].table if line.paper else None,
    }
    values |= {f"paper_{size}": next((p.value for p in line.paper if p.size == size), None) for size in SIZES}
    values |= {"paper_relative_flops": line.paper_flops, "paper_relative_time": line.paper_time}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}

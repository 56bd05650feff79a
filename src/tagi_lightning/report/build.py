"""One report: read, put into columns, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tagi_lightning.report.charts import draw_charts
from tagi_lightning.report.columns import build_columns
from tagi_lightning.report.document import report_text
from tagi_lightning.report.figures import column_lines
from tagi_lightning.report.files import ReportError
from tagi_lightning.report.results import LeftOut, Result, told
from tagi_lightning.report.sheet import report_csv
from tagi_lightning.report.tables import Table


def write_report(
    results: Sequence[Result],
    unread: Sequence[LeftOut],
    table: Table,
    output: Path,
    provenance: Sequence[str],
    allow_budgets: bool = False,
) -> list[LeftOut]:
    """Writes report.md, report.csv and the charts to a folder; charts of an earlier report there are removed.

    Args:
        results: Evaluations that were read.
        unread: Those that could not be, with why.
        table: What the report is of.
        output: The folder.
        provenance: Lines on how it was made: command, commit.
        allow_budgets: Keep rows that saw another number of examples than the reference, marked.

    Returns:
        Everything found that is not in the report, with why.

    Raises:
        ReportError: If nothing is left to report, or a row names a figure that the paper does not have.
    """
    columns, unfit = build_columns(results, table, allow_budgets)
    left_out = [*unread, *unfit]
    if not columns:
        reasons = "\n  ".join(told(left_out))
        raise ReportError(f"nothing is left to report of {table.title!r}:\n  {reasons}")
    figures = [(column, column_lines(column, table)) for column in columns]
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("column*-*.png"):
        old.unlink()
    charts = {place: draw_charts(column, table, output, f"column{place + 1}") for place, column in enumerate(columns)}
    (output / "report.csv").write_text(report_csv(table, figures, provenance), encoding="utf-8")
    (output / "report.md").write_text(report_text(table, figures, left_out, charts, provenance), encoding="utf-8")
    return left_out

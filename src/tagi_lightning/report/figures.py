"""The figures of a report: one line for each row of each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tagi_lightning.report.bootstrap import Difference, paired_bootstrap
from tagi_lightning.report.columns import Cell, Column, mean_and_std
from tagi_lightning.report.files import ReportError
from tagi_lightning.report.paper import PaperFigure, paper_cost, paper_figures
from tagi_lightning.report.tables import Table


@dataclass(frozen=True)
class Line:
    """One row in one column.

    Attributes:
        cell: Its results.
        mean: Score over the seeds.
        deviation: Standard deviation over the seeds; None with one seed.
        flops: Relative FLOPs as measured; None for what runs no model.
        seconds: Seconds of decoding, and their standard deviation.
        relative_time: Seconds relative to the backbone with the instruction concatenated; None without that row.
        paper: The paper's figures for it.
        paper_flops: The paper's relative FLOPs.
        paper_time: The paper's relative time.
        difference: The reference minus this row; None for the reference itself and where there is none.
        paired_seeds: Seeds that both have.
    """

    cell: Cell
    mean: float
    deviation: float | None
    flops: float | None
    seconds: tuple[float, float | None] | None
    relative_time: float | None
    paper: list[PaperFigure]
    paper_flops: float | None
    paper_time: float | None
    difference: Difference | None
    paired_seeds: tuple[int, ...]

    @property
    def instances(self) -> int:
        """Number of answered instances."""
        return int(self.cell.first.metrics["overall"]["n"])

    @property
    def tasks(self) -> int:
        """Number of tasks; of P3, of data sets."""
        return len(self.cell.first.metrics["by_task"])

    @property
    def parameters(self) -> int | None:
        """Parameters that the last stage trained."""
        trainings = self.cell.first.trainings
        return trainings[-1].parameters if trainings else None


def column_lines(column: Column, table: Table) -> list[Line]:
    """Returns the figures of every row of a column."""
    reference = column.cell(table.reference)
    plain = next((cell for cell in column.cells if cell.row.evaluate == "concatenated"), None)
    baseline = fmean(plain.values("seconds")) if plain and plain.values("seconds") else None
    lines = []
    for cell in column.cells:
        mean, deviation = mean_and_std(cell.values(table.metric))
        seconds, flops = cell.values("seconds"), cell.values("relative_flops")
        paired = tuple(sorted(set(cell.seeds) & set(reference.seeds))) if reference and reference is not cell else ()
        lines.append(
            Line(
                cell=cell,
                mean=mean,
                deviation=deviation,
                flops=fmean(flops) if flops else None,
                seconds=mean_and_std(seconds) if seconds else None,
                relative_time=fmean(seconds) / baseline if seconds and baseline else None,
                paper=paper_figures(table, cell.row, column),
                paper_flops=paper_cost(table, cell.row, column, "relative_flops"),
                paper_time=paper_cost(table, cell.row, column, "relative_time"),
                difference=compare(reference, cell, table.metric, paired) if reference and paired else None,
                paired_seeds=paired,
            )
        )
    return lines


def compare(reference: Cell, cell: Cell, metric: str, seeds: Sequence[int]) -> Difference:
    """Returns the reference minus a row, over tasks, each averaged over the seeds that both have.

    Raises:
        ReportError: If their scores are of other tasks.
    """
    result = reference.first
    by_task, other = reference.by_task(metric, seeds), cell.by_task(metric, seeds)
    if by_task.keys() != other.keys():
        raise ReportError(f"{cell.first.folder} and {result.folder} have {metric} of other tasks: evaluate again")
    counts = None if result.templated else {task: row["n"] for task, row in result.metrics["by_task"].items()}
    return paired_bootstrap(by_task, other, counts)

"""The text of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tagi_lightning.markdown import aligned_table, mean_spread, number, without_empty
from tagi_lightning.report.bootstrap import CONFIDENCE, FEWEST_TASKS, POWER, RESAMPLES
from tagi_lightning.report.columns import Column
from tagi_lightning.report.figures import Line
from tagi_lightning.report.p3 import p3_table
from tagi_lightning.report.results import LeftOut, told
from tagi_lightning.report.tables import METRIC_TITLES, Table

READING = f"""\
- Scores are means ± sample standard deviations over seeds, 0 to 100. *Paper* holds the paper's own figures, each with
  the size of its backbone and, where it quotes it, its source: other models and budgets than ours, and other data than
  generated tasks.
- Relative FLOPs are counted over all instances, 1 being the backbone with the instruction concatenated. Seconds are of
  decoding all instances, whatever else the machine did then; relative time divides them by that same row's, and says
  something only where no other job ran beside the evaluations.
- Examples are those that the last stage of training saw (steps times batch), parameters those that it trained.
- Differences are the reference minus the row. Scores are averaged over the seeds that both have; then tasks are drawn
  with replacement, the same for both, {RESAMPLES:,} times. The interval, of {CONFIDENCE:.0%}, holds for one comparison
  at a time and for other tasks like these, not for other seeds; below {FEWEST_TASKS} tasks there is none. *Detectable*
  is the smallest true difference that a two-sided test at {1 - CONFIDENCE:.0%} would find in {POWER:.0%} of such sets
  of tasks, about 2.8 standard errors.
"""


def report_text(
    table: Table,
    columns: Sequence[tuple[Column, list[Line]]],
    left_out: Sequence[LeftOut],
    charts: Mapping[int, Sequence[tuple[str, str]]],
    provenance: Sequence[str],
) -> str:
    """Returns a report as Markdown.

    Args:
        table: What it is of.
        columns: The columns with their figures.
        left_out: What is not reported, with why.
        charts: Files and captions by place of the column.
        provenance: Lines on how it was made.
    """
    parts = [f"# {table.title}", "\n".join(f"- {line}" for line in provenance), READING.rstrip()]
    if len(columns) > 1:
        parts += ["## Overview", overview(table, columns)]
    for place, (column, lines) in enumerate(columns):
        others = {other.cell.row for its, found in columns if its.key == column.key for other in found}
        absent = [row.title for row in table.rows if row not in others] if table.named else []
        parts += [f"## {column.title}", *section(table, column, lines, absent)]
        parts += [f"![{caption}]({name})" for name, caption in charts.get(place, ())]
    if left_out:
        listed = "\n".join(f"- {line}" for line in told(left_out))
        parts += ["## Left out", f"Found, but in no table above.\n\n{listed}"]
    return "\n\n".join(parts) + "\n"


def overview(table: Table, columns: Sequence[tuple[Column, list[Line]]]) -> str:
    """Returns a table of all columns side by side, ours and the paper's."""
    lines = [["system"]]
    for place, (column, _) in enumerate(columns, 1):
        lines[0] += [f"{place}: {column.backbone}, {column.setting}", "paper"]
    for row in table.rows:
        cells = [row.title]
        for _, figures in columns:
            line = next((line for line in figures if line.cell.row == row), None)
            cells += [mean_spread(line.mean, line.deviation), paper_cell(line)] if line else ["-", "-"]
        lines.append(cells)
    titles = "\n".join(f"{place}. {column.title}" for place, (column, _) in enumerate(columns, 1))
    return f"{METRIC_TITLES[table.metric]}.\n\n{aligned_table(without_empty(lines))}\n\n{titles}"


def section(table: Table, column: Column, lines: Sequence[Line], absent: Sequence[str]) -> list[str]:
    """Returns the paragraphs and tables of one column; `absent` are the rows without any result on its backbone."""
    parts = [scores_table(table, lines)]
    if absent:
        parts.append(f"Without a result: {'; '.join(absent)}.")
    if any(line.cell.other_budget for line in lines):
        parts.append("† saw another number of examples than the reference.")
    if detail := p3_table(table, column):
        parts += ["### By data set", detail]
    if column.cell(table.reference) is None:
        parts.append("The reference has no result here, so nothing is compared with it.")
    elif len(lines) > 1:
        parts += [f"### {table.reference} against each row", differences_table(lines)]
    if any(line.cell.first.trainings for line in lines):
        parts += ["### Training", training_table(lines)]
    return parts


def scores_table(table: Table, lines: Sequence[Line]) -> str:
    """Returns scores and costs."""
    heading = [
        "system", METRIC_TITLES[table.metric], "paper", "seeds", "instances", "tasks", "rel. FLOPs", "paper's FLOPs",
        "decoding s", "rel. time", "paper's time", "examples", "trained parameters",
    ]  # fmt: skip
    rows = [heading]
    for line in lines:
        examples, parameters = line.cell.first.examples, line.parameters
        rows.append(
            [
                line.cell.row.title,
                mean_spread(line.mean, line.deviation),
                paper_cell(line),
                ", ".join(map(str, line.cell.seeds)),
                f"{line.instances:,}",
                f"{line.tasks:,}",
                number(line.flops),
                number(line.paper_flops),
                mean_spread(*line.seconds) if line.seconds else "-",
                number(line.relative_time),
                number(line.paper_time),
                "-" if examples is None else f"{examples:,}{' †' if line.cell.other_budget else ''}",
                "-" if parameters is None else f"{parameters:,}",
            ]
        )
    return aligned_table(without_empty(rows))


def paper_cell(line: Line) -> str:
    """Returns the paper's figures with their table, `-` where it has none."""
    if not line.paper:
        return "-"
    return f"{line.paper[0].table}: {'; '.join(map(str, line.paper))}"


def differences_table(lines: Sequence[Line]) -> str:
    """Returns the reference's differences from all other rows."""
    rows = [["reference minus", "difference", "95 % interval", "detectable", "tasks", "seeds"]]
    for line in lines:
        found = line.difference
        if found is None:
            continue
        interval = "too few tasks" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
        shown = f"**{found.mean:+.2f}**" if found.clear else f"{found.mean:+.2f}"
        seeds = ", ".join(map(str, line.paired_seeds))
        rows.append([line.cell.row.title, shown, interval, number(found.detectable), str(found.tasks), seeds])
    return f"{aligned_table(rows)}\n\nBold: the interval leaves 0 out."


def training_table(lines: Sequence[Line]) -> str:
    """Returns the stages behind every trained row, of its lowest seed."""
    rows = [["system", "stages: examples seen", "steps of the last", "trained parameters", "seconds, all stages"]]
    for line in lines:
        trainings = line.cell.first.trainings
        if not trainings:
            continue
        stages = ", ".join(f"{t.stage} {'?' if t.examples is None else f'{t.examples:,}'}" for t in trainings)
        seconds = sum(t.seconds or 0.0 for t in trainings)
        parameters = "-" if line.parameters is None else f"{line.parameters:,}"
        rows.append([line.cell.row.title, stages, f"{trainings[-1].steps:,}", parameters, f"{seconds:,.0f}"])
    return aligned_table(rows)

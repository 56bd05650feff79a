"""`tagi compare`: one table of the systems evaluated in a run, or in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagi_lightning.cli.command import options_of
from tagi_lightning.markdown import aligned_table
from tagi_lightning.report.checks import read_metrics

COLUMNS = (
    ("accuracy_sum", "accuracy (sum)"),
    ("accuracy_mean", "accuracy (mean)"),
    ("exact_match", "exact match"),
    ("rougeL", "ROUGE-L"),
    ("relative_flops", "rel. FLOPs"),
    ("relative_flops_formula", "formula"),
    ("seconds", "decoding s"),
)
"""Figures of a row with their headings."""


def read_evaluations(run: Path) -> dict[str, dict[str, Any]]:
    """Returns the metrics of every system evaluated in `run`, by name, in the order of the systems' list.

    Raises:
        ReportError: If a system's are damaged or of an older layout.
    """
    from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS

    found = {}
    for name in (*HEURISTICS, *SYSTEMS):
        path = run / "evaluate" / name / "metrics.json"
        if path.is_file():
            found[name] = read_metrics(path)
    return found


def comparison_table(
    evaluations: dict[str, dict[str, Any]], others: dict[str, dict[str, dict[str, Any]]] | None = None
) -> str:
    """Returns a table of systems and their figures, as aligned Markdown.

    Args:
        evaluations: Metrics of a run's systems by name.
        others: The same of further runs by the run's name, which their rows bear.
    """
    from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS

    titles = HEURISTICS | {name: spec.title for name, spec in SYSTEMS.items()}
    named = [(titles[name], metrics) for name, metrics in evaluations.items()]
    for run, found in (others or {}).items():
        named += [(f"{run}: {titles[name]}", metrics) for name, metrics in found.items()]
    rows = [(title, metrics["overall"] | metrics) for title, metrics in named]
    columns = [column for column in COLUMNS if any(values.get(column[0]) is not None for _, values in rows)]
    lines = [["system", *(heading for _, heading in columns), "n"]]
    for title, values in rows:
        cells = [f"{values[key]:.2f}" if values.get(key) is not None else "-" for key, _ in columns]
        lines.append([title, *cells, str(values["n"])])
    return aligned_table(lines)


def benchmark_lines(evaluations: dict[str, dict[str, Any]]) -> str:
    """Returns P3's averages of every system with ranked rows, then the paper's; empty for other task sets."""
    from tagi_lightning.evaluation.benchmarks import describe, paper_lines
    from tagi_lightning.evaluation.systems import SYSTEMS

    lines: list[str] = []
    tasks: set[str] = set()
    for name, metrics in evaluations.items():
        by_task = metrics.get("by_task", {})
        if name in SYSTEMS and SYSTEMS[name].data != "held_out" and (found := describe(SYSTEMS[name].title, by_task)):
            lines += found
            tasks |= set(by_task)
    return "\n".join([*lines, *paper_lines(tasks)])


def compare(run: str, others: list[str] | None = None) -> None:
    """Print one table of the systems evaluated in a run.

    Args:
        run: Run folder.
        others: Further run folders, whose rows bear their names.
    """
    found = {folder: read_evaluations(Path(folder)) for folder in (run, *(others or []))}
    for folder, evaluated in found.items():
        if not evaluated:
            raise FileNotFoundError(f"nothing was evaluated in {folder}; run: make evaluate RUN={folder}")
    evaluations = found.pop(run)
    print(comparison_table(evaluations, {Path(folder).name: evaluated for folder, evaluated in found.items()}))
    if lines := benchmark_lines(evaluations):
        print(f"\n{lines}")


main = options_of(compare)

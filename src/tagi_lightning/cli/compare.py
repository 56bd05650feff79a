"""`tagi compare`: one table of the systems evaluated in a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonargparse

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
    """Returns the metrics of every system evaluated in `run`, by name, in the order of the systems' list."""
    from tagi_lightning.evaluation import HEURISTICS, SYSTEMS

    found = {}
    for name in (*HEURISTICS, *SYSTEMS):
        path = run / "evaluate" / name / "metrics.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def comparison_table(evaluations: dict[str, dict[str, Any]]) -> str:
    """Returns a table of systems and their figures, as aligned Markdown."""
    from tagi_lightning.evaluation import HEURISTICS, SYSTEMS

    titles = HEURISTICS | {name: spec.title for name, spec in SYSTEMS.items()}
    rows = {name: metrics["overall"] | metrics for name, metrics in evaluations.items()}
    columns = [column for column in COLUMNS if any(values.get(column[0]) is not None for values in rows.values())]
    lines = [["system", *(heading for _, heading in columns), "n"]]
    for name, metrics in evaluations.items():
        cells = [f"{rows[name][key]:.2f}" if rows[name].get(key) is not None else "-" for key, _ in columns]
        lines.append([titles[name], *cells, str(metrics["overall"]["n"])])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([table[0], rule, *table[1:]])


def benchmark_lines(evaluations: dict[str, dict[str, Any]]) -> str:
    """Returns P3's averages of every system with ranked rows, then the paper's; empty for other task sets."""
    from tagi_lightning.benchmarks import describe, paper_lines
    from tagi_lightning.evaluation import SYSTEMS

    lines: list[str] = []
    tasks: set[str] = set()
    for name, metrics in evaluations.items():
        by_task = metrics.get("by_task", {})
        if name in SYSTEMS and SYSTEMS[name].data != "held_out" and (found := describe(SYSTEMS[name].title, by_task)):
            lines += found
            tasks |= set(by_task)
    return "\n".join([*lines, *paper_lines(tasks)])


def compare(run: str) -> None:
    """Print one table of the systems evaluated in a run.

    Args:
        run: Run folder.
    """
    evaluations = read_evaluations(Path(run))
    if not evaluations:
        raise FileNotFoundError(f"nothing was evaluated in {run}; run: make evaluate RUN={run}")
    print(comparison_table(evaluations))
    if lines := benchmark_lines(evaluations):
        print(f"\n{lines}")


def main(args: list[str]) -> int:
    """Runs `tagi compare`; returns the exit code."""
    try:
        jsonargparse.auto_cli(compare, args=args, as_positional=False, prog="tagi compare", allow_abbrev=False)
    except OSError as error:
        print(f"tagi compare: {error}", file=sys.stderr)
        return 1
    return 0

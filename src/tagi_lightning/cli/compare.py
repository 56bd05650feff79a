"""`tagi compare`: one table of the systems evaluated in a run, or in several."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tagi_lightning.cli.command import options_of
from tagi_lightning.markdown import aligned_table
from tagi_lightning.report.checks import read_metrics
from tagi_lightning.storage.run_layout import EVALUATE, METRICS_FILE, PREDICTIONS_FILE

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
        path = run / EVALUATE / name / METRICS_FILE
        if path.is_file():
            found[name] = read_metrics(path)
    return found


def answered_otherwise(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> set[tuple[str, str]]:
    """Returns the runs and names of systems that answered other instances than the first system did.

    Instances of the training tasks, which every seed draws for itself, are compared by their numbers alone.

    Args:
        found: Metrics by run folder and system.

    Raises:
        ReportError: If predictions are damaged.
    """
    from tagi_lightning.evaluation.systems import SYSTEMS
    from tagi_lightning.report.results import digest, read_answers

    differing = set()
    references: dict[bool, tuple[Any, str | None]] = {}
    for run, evaluated in found.items():
        for name, metrics in evaluated.items():
            counts = metrics["overall"]["n"], {task: row["n"] for task, row in metrics["by_task"].items()}
            of_training = name in SYSTEMS and SYSTEMS[name].data == "held_out"
            path = Path(run) / EVALUATE / name / PREDICTIONS_FILE
            answered = None if of_training or not path.is_file() else digest(read_answers(path)[0])
            first_counts, first = references.setdefault(of_training, (counts, answered))
            if counts != first_counts or (answered and first and answered != first):
                differing.add((run, name))
    return differing


def comparison_table(
    evaluations: dict[str, dict[str, Any]],
    others: Mapping[str, dict[str, dict[str, Any]]] | None = None,
    marked: Collection[tuple[str, str]] = (),
) -> str:
    """Returns a table of systems and their figures, as aligned Markdown.

    Args:
        evaluations: Metrics of a run's systems by name.
        others: The same of further runs by the run's name, which their rows bear.
        marked: Names of runs, empty for the first, with those systems whose rows bear a star.
    """
    from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS

    titles = HEURISTICS | {name: spec.title for name, spec in SYSTEMS.items()}
    named = []
    for run, found in ({"": evaluations} | dict(others or {})).items():
        for name, metrics in found.items():
            title = f"{run}: {titles[name]}" if run else titles[name]
            named.append((f"{title} *" if (run, name) in marked else title, metrics))
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
    """Print one table of the systems evaluated in a run; rows of other instances than the first bear a star.

    Args:
        run: Run folder.
        others: Further run folders, whose rows bear their names.
    """
    found = {folder: read_evaluations(Path(folder)) for folder in (run, *(others or []))}
    for folder, evaluated in found.items():
        if not evaluated:
            raise FileNotFoundError(f"nothing was evaluated in {folder}; run: make evaluate RUN={folder}")
    marked = answered_otherwise(found)
    evaluations = found.pop(run)
    last = [Path(folder).name for folder in found]
    names = {folder: name if last.count(name) == 1 else folder for folder, name in zip(found, last, strict=True)}
    names[run] = ""
    table = {names[folder]: evaluated for folder, evaluated in found.items()}
    print(comparison_table(evaluations, table, {(names[folder], name) for folder, name in marked}))
    if marked:
        print("\n* answered other instances than the rows without a star: not to be compared with them")
    if lines := benchmark_lines(evaluations):
        print(f"\n{lines}")


main = options_of(compare)

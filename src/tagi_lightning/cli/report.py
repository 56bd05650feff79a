"""`tagi report`: Markdown, CSV and charts of what run folders hold, the paper's own figures beside it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import jsonargparse

from tagi_lightning.cli.command import words
from tagi_lightning.cli.experiment_files import experiments_folder
from tagi_lightning.data.task import checked_settings


def report(
    command: str,
    runs: str,
    output: str,
    table: str | None = None,
    taskset: str | None = None,
    settings: str | None = None,
    allow_budgets: bool = False,
    experiments: str | None = None,
) -> None:
    """Write a report of run folders.

    Args:
        command: The command line, to be written down.
        runs: Run folders, with commas between them.
        output: Folder for report.md, report.csv and the charts.
        table: Table of experiments/tables that gives rows and order; everything evaluated where there is none.
        taskset: Task set, where a table has a form of its own for it.
        settings: Settings instead of the table's own, or of all, with commas between them.
        allow_budgets: Keep rows that saw another number of examples than the reference, marked.
        experiments: Folder of the experiment files; ./experiments, or those of the package where there is none.
    """
    from tagi_lightning.cli.runs import git_state
    from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS
    from tagi_lightning.report.build import write_report
    from tagi_lightning.report.files import ReportError
    from tagi_lightning.report.results import read_results, told
    from tagi_lightning.report.tables import read_table, table_of

    known = None if table is None else read_table(table, experiments_folder(experiments), taskset)
    wanted = () if settings is None else checked_settings(words(settings))
    folders = words(runs)
    if not folders:
        raise ReportError(
            "no run folder is named: --runs runs/a-s0,runs/a-s1, or make report RUNS=runs/a-s0,runs/a-s1 "
            "(without RUNS, make takes runs/TASKSET-SIZE-s*, as make all leaves them)"
        )
    held_out = {name for name, spec in SYSTEMS.items() if spec.data == "held_out"}
    results, unread = read_results(folders, held_out)
    titles = HEURISTICS | {name: spec.title for name, spec in SYSTEMS.items()}
    state = git_state()
    commit = f"{state['commit']}{', with changes' if state['dirty'] else ''}" if state["commit"] else "not known"
    provenance = [f"command: `{command}`", f"commit: {commit}"]
    filled = known or table_of(results, titles)
    filled = replace(filled, settings=wanted or filled.settings)
    left_out = write_report(results, unread, filled, Path(output), provenance, allow_budgets)
    for line in told(left_out):
        print(f"left out: {line}", file=sys.stderr)
    print(f"report of {len(results)} evaluations in {Path(output) / 'report.md'}")


def main(args: list[str]) -> int:
    """Runs `tagi report`; returns the exit code."""
    parser = jsonargparse.ArgumentParser(prog="tagi report", description="Write a report of run folders.")
    parser.add_function_arguments(report, as_group=False, skip={"command"})
    report(shlex.join(["tagi", "report", *args]), **parser.parse_args(args))
    return 0

"""`tagi reproduce`: runs what is missing of the paper's tables, then reports them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tagi_lightning.cli.command import options_of, words
from tagi_lightning.cli.experiment_files import experiments_folder
from tagi_lightning.data.task import checked_settings
from tagi_lightning.report.tables import Table, read_table
from tagi_lightning.reproduce.configurations import check_choices, on_cpu
from tagi_lightning.reproduce.jobs import LOGS, Job, read_record
from tagi_lightning.reproduce.plan import Grid, check_steps, plan
from tagi_lightning.reproduce.rows import PlannedRow, planned_rows, table_names
from tagi_lightning.reproduce.runner import Outcome, Runner, last_words, launcher

MOST_JOBS = 4
"""Jobs at a time on a CPU, unless --jobs says otherwise."""


def rows_of(
    tables: Sequence[Table], settings: Sequence[str], only: Sequence[str], experiments: Path
) -> list[PlannedRow]:
    """Returns the rows of all tables in all settings, or those of some systems or titles alone.

    Args:
        tables: The tables.
        settings: Settings instead of the tables' own; none for those.
        only: Names of systems or titles of rows; none for all.
        experiments: Folder of the experiment files.

    Raises:
        FileNotFoundError: If a row's system is not there.
        ValueError: If a setting, or one of `only`, is unknown, or a row's system is none.
    """
    rows = [
        row
        for table in tables
        for setting in checked_settings(settings) or table.settings
        for row in planned_rows(table, setting, experiments)
    ]
    if unknown := [name for name in only if not any(name in (row.title, row.system.name) for row in rows)]:
        known = dict.fromkeys(name for row in rows for name in (row.system.name, row.title))
        raise ValueError(f"no rows {', '.join(unknown)}; choose systems or titles from {' | '.join(known)}")
    return [row for row in rows if not only or row.title in only or row.system.name in only]


def check_evaluated(rows: Sequence[PlannedRow]) -> None:
    """Refuses rows that evaluate what `tagi evaluate` does not know.

    Raises:
        ValueError: If there are any.
    """
    from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS

    known = [*HEURISTICS, *SYSTEMS]
    if unknown := sorted({row.evaluate for row in rows} - set(known)):
        raise ValueError(f"rows evaluate unknown systems {', '.join(unknown)}; choose from {', '.join(known)}")


def earlier_seconds(grid: Grid, jobs: Sequence[Job]) -> dict[str, list[float]]:
    """Returns the time that jobs of each kind took, of as many steps as now, in all runs of task set and size."""
    steps, found = {job.kind: job.steps for job in jobs}, defaultdict(list)
    for path in sorted(grid.runs.glob(f"{grid.taskset}-{grid.size}-s*/**/{LOGS}/*.json")):
        record = read_record(path)
        if record["steps"] == steps.get(path.stem, record["steps"]):
            found[path.stem].append(record["seconds"])
    return found


def row_names(value: Sequence[str] | str | None, tables: Sequence[Table]) -> list[str]:
    """Returns names of rows that may be written with commas, as a title may hold one, too."""
    titles = {row.title for table in tables for row in table.rows}
    pieces, found = words(value), list[str]()
    while pieces:
        counts = range(len(pieces), 1, -1)
        count = next((count for count in counts if ", ".join(pieces[:count]) in titles), 1)
        found.append(", ".join(pieces[:count]))
        pieces = pieces[count:]
    return found


def common_budget(tables: Sequence[Table]) -> dict[str, int]:
    """Returns the tables' budgets together.

    Raises:
        ValueError: If two tables disagree, which share runs.
    """
    budget: dict[str, int] = {}
    for table in tables:
        for stage, count in table.budget.items():
            if budget.setdefault(stage, count) != count:
                raise ValueError(
                    f"tables disagree on the budget of {stage}: {budget[stage]} and {count}; give --budget"
                )
    return budget


def seed_numbers(seeds: Sequence[int] | int | str) -> list[int]:
    """Returns seeds that may be written with commas.

    Raises:
        ValueError: If one is not a whole number.
    """
    found = words(seeds) if isinstance(seeds, str) else [seeds] if isinstance(seeds, int) else list(seeds)
    if not found or not all(str(seed).isdigit() for seed in found):
        raise ValueError(f"--seeds {seeds!r} are not whole numbers with commas between them")
    return list(dict.fromkeys(map(int, found)))


def tell_failures(outcome: Outcome, jobs: Sequence[Job]) -> None:
    """Prints what failed, its last words and log, and what was not run because of it."""
    by_name = {job.name: job for job in jobs}
    for name, code in outcome.failed.items():
        job = by_name[name]
        print(f"failed (exit code {code}): {name}: {last_words(job)}\n  log: {job.log}", flush=True)
        if lost := [other for other, cause in outcome.blocked.items() if cause == name]:
            print(f"  not run without it: {', '.join(lost)}", flush=True)
    for job in outcome.stopped:
        print(f"interrupted: {job.name}\n  log: {job.log}", flush=True)


def report(tables: Sequence[str], settings: Sequence[str], grid: Grid, seeds: Sequence[int], output: Path) -> int:
    """Calls `tagi report` for each table; returns the worst exit code."""
    folders, worst = ",".join(str(grid.shared(seed)) for seed in seeds), 0
    for name in tables:
        options = ["--runs", folders, "--table", name, "--output", str(output / name)]
        options += ["--taskset", grid.taskset, "--experiments", str(grid.experiments)]
        options += ["--settings", ",".join(settings)] if settings else []
        command = [sys.executable, "-m", "tagi_lightning.cli", "report", *options]
        worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


def reproduce(
    table: str,
    taskset: str = "synthetic",
    size: str = "tiny",
    seeds: list[int] | int | str = "0,1,2",
    settings: list[str] | str | None = None,
    rows: list[str] | str | None = None,
    budget: dict[str, int] | None = None,
    data: str | None = None,
    backbone: str | None = None,
    tokenizer: str | None = None,
    corpora: list[str] | str | None = None,
    allow_missing: bool = False,
    trainer: str = "cpu",
    jobs: int | None = None,
    runs: str = "runs",
    output: str | None = None,
    experiments: str | None = None,
    estimate: bool = False,
    tflops: float = 125.0,
) -> int:
    """Run what is missing of the paper's tables, then report them.

    Args:
        table: sni, p3, controls, ablation, tasks or all; several with commas between them.
        taskset: Task set: synthetic, p3-synthetic, sni, p3 or custom.
        size: Size, one of experiments/sizes.
        seeds: Seeds with commas between them; each has its own run folder.
        settings: Settings instead of the tables' own: def, def+2pos.
        rows: Systems or titles of the rows to run; all where none is named.
        budget: Steps of stages, and by evaluate the instances of a test task: '{distill: 500, evaluate: 20}'.
        data: Data folder; data/<taskset> where none is given.
        backbone: Hub id or folder instead of the size's own.
        tokenizer: Tokenizer folder or hub id, where the backbone brings none.
        corpora: Files or folders of plain text for pretraining.
        allow_missing: Go on without absent task files, and say which in the logs.
        trainer: cpu, cpu-bf16, gpu, ddp, fsdp or deepspeed.
        jobs: Jobs at a time; one a core up to four on the CPU and one on GPUs where none is given.
        runs: Folder of the runs.
        output: Folder of the reports; RUNS/reports/<taskset>-<size> where none is given.
        experiments: Folder of the experiment files; ./experiments, or those of the package where there is none.
        estimate: Print the jobs with steps, time and memory, and run nothing.
        tflops: Operations a GPU sustains in a second, in 10^12, for the estimated time.
    """
    folder = experiments_folder(experiments)
    check_choices(folder, taskset, size, trainer)
    numbers = seed_numbers(seeds)
    names = list(table_names(taskset, folder)) if table == "all" else words(table)
    tables = [read_table(name, folder, taskset) for name in names]
    grid = Grid(
        taskset=taskset,
        size=size,
        data=Path(data or f"data/{taskset}"),
        trainer=trainer,
        runs=Path(runs),
        experiments=folder,
        backbone=backbone,
        tokenizer=tokenizer,
        corpora=tuple(words(corpora)),
        allow_missing=allow_missing,
        budget=budget if budget is not None else common_budget(tables),
    )
    chosen = rows_of(tables, words(settings), row_names(rows, tables), folder)
    check_evaluated(chosen)
    planned = plan(grid, chosen, numbers)
    check_steps(planned)
    workers = jobs or (min(MOST_JOBS, len(os.sched_getaffinity(0))) if on_cpu(folder, trainer) else 1)
    seconds = earlier_seconds(grid, planned)
    if estimate:
        from tagi_lightning.reproduce.estimate import Estimator, estimate_table

        print(estimate_table(planned, Estimator(grid, seconds, tflops), workers))
        return 0
    outcome = Runner(planned, launcher(workers), workers, seconds).run()
    tell_failures(outcome, planned)
    if outcome.interrupted is not None:
        print("interrupted; the same command goes on", flush=True)
        return 128 + outcome.interrupted
    code = report(names, words(settings), grid, numbers, Path(output or f"{runs}/reports/{taskset}-{size}"))
    return 1 if outcome.failed or code else 0


main = options_of(reproduce)

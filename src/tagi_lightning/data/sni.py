"""Super-NaturalInstructions: the official folder of task files and split lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.splits import ValSplit, arrange
from tagi_lightning.data.task import Task, TaskSplits
from tagi_lightning.data.task_file import read_task, read_text

__all__ = ["read_sni", "read_task"]

ADVICE = "Get the official folder with `make data TASKSET=sni`, or name a whole one with DATA=FOLDER."
WITHOUT_ABSENT = " --data.allow_missing=true goes on without the task files that are absent."

NO_FILE = "task without a file in tasks/"
"""What is said of a task that is listed and has no file."""

MAX_NAME = 250
"""Bytes of a task's name at most, so that it can be a file's."""


def read_sni(
    folder: Path,
    *,
    allow_missing: bool = False,
    seed: int = 0,
    max_train_instances: int | None = 100,
    max_test_instances: int | None = 100,
    held_out_instances: int = 0,
    categories: int | Sequence[str] | None = None,
    val_split: ValSplit = "none",
    val_share: float = 0.05,
    report: DataReport | None = None,
) -> TaskSplits:
    """Reads the tasks that the default track's split lists name.

    Args:
        folder: Holds tasks/*.json and splits/default/{train,test}_tasks.txt.
        allow_missing: Leave out tasks without a file, and note them, instead of stopping.
        seed: Seed of the permutation of training instances and of the validation split.
        max_train_instances: Instances of a training task, the first of a permutation by (seed, task); None takes all.
        max_test_instances: Instances of a test task, the first in the file (Table 5 has 100); None takes all.
        held_out_instances: If positive, the training tasks come with that many instances *after* their
            training ones (ranks 101 to 150 for 50) instead, for scoring teachers on what they have not seen.
        categories: 6, 15, 30 or 60 for the paper's subsets (Table 11), or names; None takes all.
        val_split: What validation holds out of the training tasks; the test tasks are never touched.
        val_share: Share that validation holds out.
        report: Receives what was left out; give one to show its `summary()`.

    Returns:
        The splits, tasks in the order of their lists.

    Raises:
        DataError: If anything is wrong with the folder or its files; one message names every problem.
    """
    report = report or DataReport(str(folder))
    lists = {which: folder / "splits" / "default" / f"{which}_tasks.txt" for which in ("train", "test")}
    for path in (folder / "tasks", *lists.values()):
        if not path.exists():
            report.error("missing file or folder", str(path))
    report.raise_if_errors(ADVICE)

    names = {which: _read_names(path, report) for which, path in lists.items()}
    for name in sorted(set(names["train"]) & set(names["test"])):
        report.error("test task in the train list", name)
    tasks = {which: _read_tasks(folder, which, names[which], allow_missing, report) for which in lists}
    advice = ADVICE
    if not any(tasks.values()):
        report.error("no usable task", str(folder / "tasks"))
    elif any(NO_FILE in kind for kind in report.errors):
        advice += WITHOUT_ABSENT
    return arrange(
        tasks["train"],
        tasks["test"],
        report,
        seed=seed,
        max_train_instances=max_train_instances,
        max_test_instances=max_test_instances,
        held_out_instances=held_out_instances,
        categories=categories,
        val_split=val_split,
        val_share=val_share,
        advice=advice,
    )


def sni_files(folder: Path) -> list[Path]:
    """Returns every file that `read_sni` may open."""
    return [*folder.glob("splits/default/*.txt"), *folder.glob("tasks/*.json")]


def _read_names(path: Path, report: DataReport) -> list[str]:
    text = read_text(path, report)
    names = Counter(line.strip() for line in (text or "").splitlines() if line.strip())
    if text is not None and not names:
        report.error("empty split list", path.name)
    for name, count in names.items():
        if not _is_file_name(name):
            report.error("line of a split list that is no task's name", f"{name!r} ({path.name})")
        elif count > 1:
            report.error("task named more than once in a split list", f"{name} ({path.name})")
    return [name for name in names if _is_file_name(name)]


def _is_file_name(name: str) -> bool:
    return "/" not in name and "\0" not in name and len(name.encode()) <= MAX_NAME


def _read_tasks(folder: Path, which: str, names: list[str], allow_missing: bool, report: DataReport) -> list[Task]:
    tasks = []
    absent = []
    for name in names:
        path = folder / "tasks" / f"{name}.json"
        if not path.exists():
            absent.append(name)
        elif (task := read_task(path, report)) is not None:
            tasks.append(task)
    record = report.note if allow_missing else report.error
    for name in absent:
        record(f"{which} {NO_FILE} ({len(names)} are listed)", name)
    return tasks

"""A user's own tasks: a folder of task files without split lists, or rows in JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.splits import ValSplit, arrange, hold_out
from tagi_lightning.data.task import TaskSplits
from tagi_lightning.data.task_file import parse_object, parse_task, read_document, read_text

ADVICE = (
    "Give a JSONL file with rows {task, instruction, input, output} and optionally category, demonstrations, id and "
    'split ("train" or "test"), or a folder of such files, or a folder of task files in the Super-NaturalInstructions '
    "schema."
)
TASK_KEYS = ("instruction", "category", "demonstrations", "split")
ROW_KEYS = ("task", "id", "input", "output")
SPLITS = ("train", "test")


def read_custom(
    path: Path,
    *,
    seed: int = 0,
    test_share: float = 0.2,
    max_train_instances: int | None = None,
    max_test_instances: int | None = None,
    held_out_instances: int = 0,
    categories: int | Sequence[str] | None = None,
    val_split: ValSplit = "none",
    val_share: float = 0.05,
    report: DataReport | None = None,
) -> TaskSplits:
    """Reads a user's own tasks.

    A JSONL row holds task, instruction (text, or a list of phrasings), input and output (text, or a list of
    acceptable texts), and may hold category, demonstrations (a list of {input, output}), id and split. Rows of one
    task are gathered in first-seen order; what belongs to the task stands on its first row and is left out of, or
    the same on, the others. A null counts as left out. A task without category is a category of its own.

    Where the tasks carry a split, "train" or "test", all must. Otherwise a share of the tasks is held out for
    testing, never a share of a task's rows: what is tested is how unseen tasks are solved.

    Args:
        path: A JSONL file, a folder of JSONL files, or a folder (or its tasks/) of task files in the official schema.
        seed: Seed of the held-out tasks, the permutation of training instances and the validation split.
        test_share: Share of the tasks held out where none carries a split: 0 for none, 1 for all.
        max_train_instances: Instances of a training task, the first of a permutation by (seed, task); None takes all.
        max_test_instances: Instances of a test task, the first as given; None takes all.
        held_out_instances: If positive, the training tasks come with that many instances *after* their
            training ones instead, for scoring teachers on what they have not seen.
        categories: Names of the training categories to take, or the size of one of the paper's subsets where
            the tasks are of its categories; None takes all.
        val_split: What validation holds out of the training tasks; the test tasks are never touched.
        val_share: Share that validation holds out.
        report: Receives what was left out; give one to show its `summary()`.

    Raises:
        DataError: If anything is wrong; one message names every problem by file and line.
        ValueError: If an option is out of its range.
    """
    check_range({"test_share": test_share}, least=0, most=1)
    report = report or DataReport(str(path))
    sources = _sources(path, report)
    if not sources:
        report.raise_if_errors(ADVICE)
    tasks = []
    for source in sources:
        task = parse_task(source.document, source.name, report, source.where, source.place)
        if task is not None:
            tasks.append(task)
    test_names = _test_names(sources, test_share, seed, report)
    return arrange(
        [task for task in tasks if task.name not in test_names],
        [task for task in tasks if task.name in test_names],
        report,
        seed=seed,
        max_train_instances=max_train_instances,
        max_test_instances=max_test_instances,
        held_out_instances=held_out_instances,
        categories=categories,
        val_split=val_split,
        val_share=val_share,
        advice=ADVICE,
    )


@dataclass
class _Source:
    """A task as given: a document of the official schema, its split, and where it and its rows stand."""

    name: str
    where: str
    document: dict[str, Any]
    split: object
    places: list[str] = field(default_factory=list)

    def place(self, row: int) -> str:
        return self.places[row] if self.places else f"{self.where} instance {row}"


def _sources(path: Path, report: DataReport) -> list[_Source]:
    if path.is_file():
        return _gather_rows([path], report)
    if (path / "splits").exists():
        report.error("folder with split lists of its own, which TASKSET=sni reads", str(path / "splits"))
        return []
    folder = path / "tasks" if (path / "tasks").is_dir() else path
    rows, documents = sorted(folder.glob("*.jsonl")), sorted(folder.glob("*.json"))
    if rows and documents:
        report.error("folder with both .jsonl and .json files", str(folder))
    if not rows and not documents:
        report.error("no .jsonl or .json file", str(folder))
    return _gather_rows(rows, report) if rows else _read_documents(documents, report)


def _read_documents(paths: list[Path], report: DataReport) -> list[_Source]:
    sources = []
    for path in paths:
        document = read_document(path, report)
        if document is not None:
            sources.append(_Source(path.stem, path.name, document, document.get("split")))
    return sources


def _gather_rows(paths: list[Path], report: DataReport) -> list[_Source]:
    """Groups the rows of JSONL files to tasks, in the order in which the tasks are first seen."""
    first_rows: dict[str, dict[str, Any]] = {}
    sources: dict[str, _Source] = {}
    for path in paths:
        for number, line in enumerate((read_text(path, report) or "").split("\n"), start=1):
            where = f"{path.name}:{number}"
            given = parse_object(line, where, report) if line.strip() else None
            if given is None:
                continue
            row = {key: value for key, value in given.items() if value is not None}
            name = row.get("task")
            if not isinstance(name, str) or not name.strip():
                report.error("row without a task's name", where)
                continue
            first = first_rows.setdefault(name, row)
            if first is row:
                sources[name] = _Source(name, where, _document(row), row.get("split"))
            for key in row:
                _check_key(key, row, first, where, report)
            sources[name].document["Instances"].append(row)
            sources[name].places.append(where)
    if not sources and not report.errors:
        report.error("no rows", ", ".join(path.name for path in paths))
    return list(sources.values())


def _document(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "Definition": row.get("instruction"),
        "Categories": [row["category"]] if "category" in row else [],
        "Positive Examples": row.get("demonstrations", []),
        "Instances": [],
    }


def _check_key(key: str, row: dict[str, Any], first: dict[str, Any], where: str, report: DataReport) -> None:
    if key in TASK_KEYS and (key not in first or row[key] != first[key]):
        report.error(f"{key} that differs from the task's first row", where)
    elif key not in TASK_KEYS + ROW_KEYS:
        report.note(f"unknown key {key!r}, not used", where)


def _test_names(sources: list[_Source], share: float, seed: int, report: DataReport) -> frozenset[str]:
    """Returns the names of the test tasks: as they are marked, or a share of all."""
    names = frozenset(source.name for source in sources)
    if any(source.split is not None for source in sources):
        for source in sources:
            if source.split not in SPLITS:
                allowed = "all tasks have one or none has"
                report.error(f"split that is neither train nor test ({allowed})", f"{source.where} ({source.split!r})")
        return frozenset(source.name for source in sources if source.split == "test")
    if share in (0, 1) or len(names) < 2:
        return names if share == 1 else frozenset()
    held = hold_out(names, share, f"{seed}/test")
    for name in sorted(held):
        report.note('task held out for testing, as none carries a "split"', name)
    return held

"""T0's lists: 36 training sets with 290 templates, 11 test tasks with 116, and the paper's subsets; or one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.task_file import read_text
from tagi_lightning.data.yaml_text import parse_yaml

LISTS = "lists.yaml"
"""A file beside the rows that lists other data sets than T0's, in the form of this package's own."""

PARTS = ("train", "test")
MAX_NAME = 200
"""Bytes of a data set's or template's name at most, so that it can be a file's."""
ADVICE = "Give train: and test:, mappings of names to {templates: FOLDER, names: [TEMPLATE, ...]}, or remove the file."


@dataclass(frozen=True, slots=True)
class P3Dataset:
    """A data set of T0's lists.

    Attributes:
        name: P3's name of it, the category of its tasks.
        template_folder: Folder of its templates.yaml among promptsource's.
        row_folders: Names that the folder of its rows may have.
        templates: Names of the templates T0 uses.
        rendered: P3's configuration names, {} standing for the template.
        hub: Id on the Hugging Face hub and configuration, `*` where there is one only; empty where it is not there.
        hub_splits: What the hub calls its splits.
    """

    name: str
    template_folder: str
    row_folders: tuple[str, ...]
    templates: tuple[str, ...]
    rendered: str
    hub: tuple[str, ...]
    hub_splits: dict[str, str]

    def task_name(self, template: str) -> str:
        """Returns the name of the task that a template makes of the data set."""
        return f"{self.name}/{path_safe(template)}"

    def rendered_folder(self, template: str) -> str:
        """Returns P3's name for the data set's rows rendered with a template."""
        return self.rendered.replace("{}", path_safe(template))


def path_safe(name: str) -> str:
    """Returns a template's name as it stands in P3's configuration names and in names of tasks."""
    return re.sub(r"[^\w.]+", "_", name)


@cache
def _document() -> dict[str, Any]:
    text = resources.files("tagi_lightning.data.p3").joinpath(LISTS).read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _read(path: Path) -> dict[str, Any]:
    """Returns a file of lists of one's own.

    Raises:
        DataError: If it is not as it must be.
    """
    report = DataReport(str(path))
    text = read_text(path, report)
    document: Any = None
    try:
        document = parse_yaml(text) if text is not None else None
    except ValueError as error:
        report.error("not YAML", str(error))
    parts = [document.get(part) for part in PARTS] if isinstance(document, dict) else []
    if not all(isinstance(part, dict) for part in parts) or len(parts) < len(PARTS):
        report.error("no mappings train and test of data sets", path.name)
    for name, entry in ((name, entry) for part in parts if isinstance(part, dict) for name, entry in part.items()):
        for problem in _problems(name, entry):
            report.error(problem, str(name))
    report.raise_if_errors(ADVICE)
    found: dict[str, Any] = document
    return found


def _problems(name: Any, entry: Any) -> list[str]:
    """Lists what keeps an entry from being a data set."""
    if not _is_name(name) or not isinstance(entry, dict):
        return ["data set that is no name with a mapping"]
    problems = [f"{key} that is not text" for key in ("templates", "rendered") if not _is_name(entry.get(key, "x"))]
    for key in ("names", "rows", "hub"):
        given = entry.get(key, [])
        if not isinstance(given, list) or not all(map(_is_name, given)):
            problems.append(f"{key} that is no list of texts")
    splits = entry.get("hub_splits", {})
    if not isinstance(splits, dict) or not all(map(_is_name, [*splits, *splits.values()])):
        problems.append("hub_splits that is no mapping of texts")
    return problems + [f"data set without {key}" for key in ("templates", "names") if not entry.get(key)]


def _is_name(value: Any) -> bool:
    """Tells whether a value is a text that can be part of a file's path."""
    return isinstance(value, str) and 0 < len(value.encode()) <= MAX_NAME and "\0" not in value


def _datasets(part: str, path: Path | None = None) -> tuple[P3Dataset, ...]:
    document = _document() if path is None else _read(path)
    return tuple(
        P3Dataset(
            name,
            entry["templates"],
            (name, *entry.get("rows", ())),
            tuple(entry["names"]),
            entry.get("rendered", f"{name}_{{}}"),
            (*entry.get("hub", ()), "*")[:2] if "hub" in entry else (),
            entry.get("hub_splits", {}),
        )
        for name, entry in document[part].items()
    )


def subset_sizes() -> tuple[int, ...]:
    """Returns the sizes of the paper's subsets of training sets."""
    return tuple(_document()["subsets"])


def train_datasets(subset: int | Sequence[str] | None = None, lists: Path | None = None) -> tuple[P3Dataset, ...]:
    """Returns training sets in the paper's order.

    Args:
        subset: 5, 10, 20 or 36 for the first so many (paper 6.2), or names; None takes all.
        lists: A file that lists other data sets, without subsets; None for T0's.

    Raises:
        DataError: If the paper has no such subset or there is no data set of a name.
    """
    datasets = _datasets("train", lists)
    if subset is None:
        return datasets
    if isinstance(subset, int):
        if lists is not None:
            raise DataError(
                f"subset={subset} is of T0's training sets; {lists} lists others: give names, or null for all"
            )
        if subset not in subset_sizes():
            allowed = ", ".join(map(str, subset_sizes()))
            raise DataError(f"no subset of {subset} P3 training sets, allowed: {allowed}, or names of data sets")
        return datasets[:subset]
    names = [dataset.name for dataset in datasets]
    if unknown := [name for name in subset if name not in names]:
        raise DataError(f"unknown P3 training sets: {', '.join(unknown)} (allowed: {', '.join(names)})")
    return tuple(dataset for dataset in datasets if dataset.name in subset)


def test_datasets(lists: Path | None = None) -> tuple[P3Dataset, ...]:  # noqa: PT028
    """Returns the eleven test tasks, MTest11, or those of a file that lists others."""
    return _datasets("test", lists)


test_datasets.__test__ = False  # type: ignore[attr-defined]  # no test, whatever its name says

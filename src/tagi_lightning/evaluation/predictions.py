"""`predictions.jsonl` and `metrics.json`: what an evaluation leaves behind, written and read back strictly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagi_lightning.data.files import replace_file
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.options import fits

_TEXTS = ("id", "task", "category", "dataset", "template", "instruction_sha256", "prediction")
_RANKED = ("choices", "logprob_sum", "logprob_mean", "gold")
_REQUIRED = (*_TEXTS, "references")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system answered to one instance: one row of `predictions.jsonl`.

    Attributes:
        id: Instance, unique within its task.
        task: Name of the task.
        category: Category of the task.
        dataset: Source data set (P3), else empty.
        template: Prompt template's name (P3), else empty.
        instruction_sha256: Hex digest of the instruction's text; empty where the system reads none.
        prediction: Generated text, or the chosen answer of a ranked row.
        references: Acceptable outputs, at least one.
        choices: Answer choices of a ranked row, else empty, and so are the three below.
        logprob_sum: Log-likelihood of each choice, summed over its tokens.
        logprob_mean: The same per token.
        gold: Index of the right choice; None in rows that are not ranked.

    Raises:
        ValueError: If the task's name or references are missing, or the fields of a ranked row do not fit one another.
    """

    id: str
    task: str
    category: str
    dataset: str
    template: str
    instruction_sha256: str
    prediction: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    logprob_sum: tuple[float, ...] = ()
    logprob_mean: tuple[float, ...] = ()
    gold: int | None = None

    def __post_init__(self) -> None:
        if not self.task:
            raise ValueError("task must not be empty")
        if not self.references:
            raise ValueError("references must name at least one acceptable output")
        if not len(self.choices) == len(self.logprob_sum) == len(self.logprob_mean):
            raise ValueError("choices, logprob_sum and logprob_mean must be equally long")
        if not all(fits(value, float) for value in (*self.logprob_sum, *self.logprob_mean)):
            raise ValueError("logprob_sum and logprob_mean must be finite numbers")
        if self.choices and (self.gold is None or not 0 <= self.gold < len(self.choices)):
            raise ValueError("gold must be the index of one of the choices")
        if not self.choices and self.gold is not None:
            raise ValueError("gold needs choices")

    @property
    def ranked(self) -> bool:
        """Whether the row carries scored answer choices."""
        return bool(self.choices)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as it stands in the file; a row without choices leaves the ranked keys out."""
        keys = _REQUIRED + _RANKED if self.ranked else _REQUIRED
        return {key: getattr(self, key) for key in keys}


def write_predictions(path: str | Path, rows: Iterable[Prediction], overwrite: bool = False) -> None:
    """Writes one JSON object a line, in UTF-8; the file appears whole or not at all.

    Args:
        path: The file to write; its folder is made where it is missing.
        rows: Rows in the order they are to stand in.
        overwrite: Replace a file that is already there.

    Raises:
        FileExistsError: If the file exists and `overwrite` is false.
    """
    _write(Path(path), (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows), overwrite)


def write_metrics(path: str | Path, metrics: dict[str, Any], overwrite: bool = False) -> None:
    """Writes `metrics.json`; the file appears whole or not at all.

    Args:
        path: The file to write; its folder is made where it is missing.
        metrics: What `metrics.aggregate` returns, with whatever describes the run beside it.
        overwrite: Replace a file that is already there.

    Raises:
        FileExistsError: If the file exists and `overwrite` is false.
        ValueError: If a figure is not a finite number.
    """
    _write(Path(path), [metrics_text(metrics) + "\n"], overwrite)


def metrics_text(metrics: dict[str, Any]) -> str:
    """Returns `metrics` as indented JSON, the text of `metrics.json` and of `tagi score`."""
    text = json.dumps(metrics, ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode(errors="backslashreplace").decode()  # half a character in a name becomes its escape


def read_predictions(path: str | Path) -> list[Prediction]:
    """Reads a `predictions.jsonl`, and tells every problem of the file at once.

    Args:
        path: The file to read.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If a row is no JSON object, has missing or unknown keys or wrong types, contradicts itself,
            or repeats the (task, id) of an earlier one; or if the file has no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name the predictions.jsonl of an evaluation")
    report = DataReport(str(path))
    rows: list[Prediction] = []
    lines: dict[tuple[str, str], int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            row = _parse(line, where, report)
            if row is None:
                continue
            first = lines.setdefault((row.task, row.id), number)
            if first != number:
                report.error("row repeated", f"{where} (task {row.task!r}, id {row.id!r}, as in line {first})")
            rows.append(row)
    report.raise_if_errors("Each line is one JSON object as `tagi evaluate` writes it.")
    if not rows:
        raise DataError(f"{path} has no rows: there is nothing to score")
    return rows


def _parse(line: bytes, where: str, report: DataReport) -> Prediction | None:
    """Returns the row of one line, or None after telling `report` why there is none."""
    try:
        row = parse_json(line.decode(), half_characters=True)
    except UnicodeDecodeError:
        report.error("line is not UTF-8", where)
        return None
    except ValueError as error:
        report.error("line is not JSON", f"{where} ({error})")
        return None
    problems = list(_schema_problems(row))
    for problem in problems:
        report.error(problem, where)
    if problems:
        return None
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    try:
        return Prediction(**values)
    except ValueError as error:
        report.error(str(error), where)
        return None


def _schema_problems(row: Any) -> Iterator[str]:
    """Yields what keeps the parsed JSON value `row` from being a row, in words."""
    if not isinstance(row, dict):
        yield "line is not a JSON object"
        return
    required = _REQUIRED + _RANKED if any(key in row for key in _RANKED) else _REQUIRED
    for key in required:
        if key not in row:
            yield f"key {key!r} missing"
    for key, value in row.items():
        if key not in _REQUIRED + _RANKED:
            yield f"key {key!r} unknown"
        elif key in _TEXTS and not isinstance(value, str):
            yield f"{key} must be text"
        elif key in ("references", "choices") and not _is_list(value, (str,)):
            yield f"{key} must be a list of texts"
        elif key in ("logprob_sum", "logprob_mean") and not _is_list(value, (int, float)):
            yield f"{key} must be a list of numbers"
        elif key == "gold" and type(value) is not int:
            yield "gold must be a whole number"


def _is_list(value: Any, types: tuple[type, ...]) -> bool:
    # by exact type, because to isinstance true and false are numbers
    return isinstance(value, list) and all(type(item) in types for item in value)


def _write(path: Path, parts: Iterable[str], overwrite: bool) -> None:
    """Writes `parts`, whole or not at all."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: remove it, name another file or ask to overwrite it")
    # a lone surrogate, legal in JSON escapes but not in UTF-8, becomes such an escape again
    lines = (part.encode(errors="backslashreplace") for part in parts)
    replace_file(path, lambda stream: stream.writelines(lines), shared=True)

"""Rows of a data set's split: JSONL, parquet or an arrow folder as `datasets` saves it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, load_from_disk

from tagi_lightning.data.report import DataReport

Row = Mapping[str, Any]


class Rows(Sequence[Row | None]):
    """The rows in their order; None stands for one that is no UTF-8 text or no JSON object.

    Attributes:
        columns: Names of the fields that any row has.
    """

    def __init__(self, rows: Sequence[Row | None] | Dataset, columns: frozenset[str]) -> None:
        self._rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: Any) -> Any:
        try:
            return self._rows[position]
        except UnicodeDecodeError:
            return None


def open_rows(folder: Path, split: str, report: DataReport) -> Rows | None:
    """Returns the rows of a split, or None where the folder has none.

    Args:
        folder: Holds `<split>.jsonl`, `<split>.parquet`, `<split>-*.parquet`, or the arrow folder `<split>`.
        split: Name of the split, such as train.
        report: Receives an error for a file that cannot be read.
    """
    lines = folder / f"{split}.jsonl"
    tables = sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])
    arrow = folder / split
    try:
        if lines.is_file():
            return _read_lines(lines)
        if tables:
            return _from_dataset(Dataset(pq.read_table([str(path) for path in tables])))
        if (arrow / "state.json").is_file():
            return _from_dataset(load_from_disk(str(arrow)))
    except (OSError, ValueError) as error:
        report.error("rows that cannot be read", f"{folder}, {split} ({' '.join(str(error).split())})")
    return None


def _from_dataset(dataset: Dataset) -> Rows:
    return Rows(dataset, frozenset(dataset.column_names))


def _read_lines(path: Path) -> Rows:
    rows = list(_parse_lines(path))
    return Rows(rows, frozenset(name for row in rows if row is not None for name in row))


def _parse_lines(path: Path) -> Iterator[Row | None]:
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line.decode("utf-8"))
                # An unpaired surrogate passes through json and stops the tokenizer much later.
                if b"\\ud" in line or b"\\uD" in line:
                    json.dumps(row, ensure_ascii=False).encode("utf-8")
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None

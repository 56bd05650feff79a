"""Rows of a data set's split: JSONL, parquet or an arrow folder as `datasets` saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, load_from_disk

from tagi_lightning.data.json_text import parse_json
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
            return _from_dataset(_checked(load_from_disk(str(arrow))))
    except Exception as error:  # a damaged description makes `datasets` and Arrow raise whatever they meet
        report.error("rows that cannot be read", f"{folder}, {split} ({' '.join(str(error).split())})")
    return None


def _checked(dataset: Any) -> Dataset:
    """Returns a data set that lies in Arrow files, whose offsets would end the process where they lead out of a file.

    Raises:
        ValueError: If they do, or there are several splits.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError("it holds several splits")
    table = dataset.data.table
    table.validate()
    # whether a text is UTF-8 is a matter of its row
    for column in table.columns:
        column.cast(_as_bytes(column.type)).validate(full=True)
    return dataset


def _as_bytes(kind: Any) -> Any:
    """Returns an Arrow type with bytes for texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(each.name, _as_bytes(each.type)) for each in kind])
    return kind


def _from_dataset(dataset: Dataset) -> Rows:
    return Rows(dataset, frozenset(dataset.column_names))


def _read_lines(path: Path) -> Rows:
    rows = list(_parse_lines(path))
    return Rows(rows, frozenset(name for row in rows if row is not None for name in row))


def _parse_lines(path: Path) -> Iterator[Row | None]:
    with path.open("rb") as file:
        for line in file:
            try:
                row = parse_json(line.decode())
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None

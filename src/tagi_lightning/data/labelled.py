"""Inputs with their answers, of one task and without its instruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task_file import parse_object, read_text

ADVICE = 'Give JSON lines such as {"input": "2 3", "output": "5"}; output may be a list of acceptable ones.'


@dataclass(frozen=True, slots=True)
class LabelledInput:
    """One example.

    Attributes:
        input: The input.
        references: Acceptable outputs, at least one; the first is trained on.
    """

    input: str
    references: tuple[str, ...]


def read_labelled(path: Path) -> list[LabelledInput]:
    """Reads JSON lines, each an example; other keys than input and output say nothing.

    Raises:
        DataError: If any line is none; one message names every problem by line.
    """
    report = DataReport(str(path))
    found = []
    for number, line in enumerate((read_text(path, report) or "").split("\n"), start=1):
        where = f"{path.name}:{number}"
        row = parse_object(line, where, report) if line.strip() else None
        if row is None:
            continue
        output = row.get("output")
        outputs: list[Any] = output if isinstance(output, list) else [output]
        if not isinstance(row.get("input"), str):
            report.error("input that is not text", where)
        elif not outputs or not all(isinstance(each, str) for each in outputs):
            report.error("output that is neither text nor a list of texts", where)
        else:
            found.append(LabelledInput(row["input"], tuple(outputs)))
    if not found and not report.errors:
        report.error("no rows", path.name)
    report.raise_if_errors(ADVICE)
    return found

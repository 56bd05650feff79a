"""Rows already rendered, as in Hugging Face's bigscience/P3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tagi_lightning.data.p3.limits import RowProblem
from tagi_lightning.data.p3.render import Filled, check_choices
from tagi_lightning.data.p3.rows import Row, Rows


class RenderedRows:
    """Examples of one template from rendered rows.

    A row is an example, with its choices where it has `answer_choices`. Rows with `is_correct` are one example's
    choices each and stand one after another; their common input tells, and `idx`, their example and place.
    """

    def __init__(self, rows: Rows) -> None:
        """Groups the rows to examples."""
        numbers: Sequence[int] = range(len(rows))
        self.rows = rows
        if "is_correct" in rows.columns:
            self.groups = [list(group) for _, group in groupby(numbers, key=lambda number: _example(rows[number]))]
        else:
            self.groups = [[number] for number in numbers]

    def __len__(self) -> int:
        return len(self.groups)

    def fill(self, position: int) -> Filled:
        """Returns the example at `position`.

        Raises:
            RowProblem: If it cannot be used.
        """
        found: list[Row | None] = [self.rows[number] for number in self.groups[position]]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            raise RowProblem("row that is no UTF-8 text or no JSON object")
        prompt = _text(rows[0], "inputs_pretokenized")
        targets = [_text(row, "targets_pretokenized") for row in rows]
        if "is_correct" in rows[0]:
            return _from_choices(prompt, targets, [row.get("is_correct") is True for row in rows])
        given = rows[0].get("answer_choices") or []
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise RowProblem("answer_choices that are no list of texts")
        choices = tuple(each.strip() for each in given)
        check_choices(choices)
        gold = choices.index(targets[0]) if targets[0] in choices else None
        return Filled(prompt, prompt, tuple(targets), choices, gold)


def _from_choices(prompt: str, choices: list[str], correct: list[bool]) -> Filled:
    check_choices(choices)
    if sum(correct) != 1:
        raise RowProblem(f"{sum(correct)} choices marked as correct, not one")
    gold = correct.index(True)
    return Filled(prompt, prompt, (choices[gold],), tuple(choices), gold)


def _example(row: Row | None) -> Any:
    """Returns what the rows of one example have in common."""
    match row:
        case {"idx": [first, *_], "inputs_pretokenized": text}:
            return first, text
        case {"inputs_pretokenized": text}:
            return text
    return None


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowProblem(f"row without text as {name}")
    return value.strip()

"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def aligned_table(lines: Sequence[Sequence[str]]) -> str:
    """Returns a table whose bars stand below each other; the first line is the heading, the first column is text."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(cells[0]))]

    def row(line: Sequence[str]) -> str:
        figures = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "| " + " | ".join([line[0].ljust(widths[0]), *figures]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([row(cells[0]), rule, *map(row, cells[1:])])


def without_empty(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the lines of a table without the columns that tell nothing below their heading."""
    kept = [column for column in range(len(lines[0])) if any(line[column] not in ("", "-") for line in lines[1:])]
    return [[line[column] for column in kept] for line in lines]


def number(value: float | None, digits: int = 2) -> str:
    """Returns a figure with fixed decimals, `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def mean_spread(mean: float, deviation: float | None, digits: int = 2) -> str:
    """Returns `mean ± deviation`, the mean alone where there is no deviation."""
    return number(mean, digits) + ("" if deviation is None else f" ± {deviation:.{digits}f}")

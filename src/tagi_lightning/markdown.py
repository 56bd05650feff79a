"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def aligned_table(lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Returns a table whose bars stand below each other, and which no cell's text can break.

    Args:
        lines: Cells line by line, of which the first is the heading.
        texts: Leading columns of text, at the left of their cells; figures follow, at the right.
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(cells[0]))]

    def row(line: Sequence[str]) -> str:
        words = [cell.ljust(width) for cell, width in zip(line[:texts], widths[:texts], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(line[texts:], widths[texts:], strict=True)]
        return "| " + " | ".join([*words, *figures]) + " |"

    rules = ["-" * (width + 2) for width in widths[:texts]] + ["-" * (width + 1) + ":" for width in widths[texts:]]
    return "\n".join([row(cells[0]), f"|{'|'.join(rules)}|", *map(row, cells[1:])])


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

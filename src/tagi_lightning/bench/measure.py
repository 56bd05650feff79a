"""The benchmark's machinery: two things timed in turn in one process, and their ratio.

Absolute times of one machine say little of another; a ratio of two things that take turns does. Every figure is the
median of paired repeats, with their spread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tagi_lightning.markdown import aligned_table

REPEATS = 7
"""Paired repeats of a case, at least."""


@dataclass(frozen=True)
class Result:
    """One figure of the benchmark.

    Attributes:
        case: Name of the case.
        compares: What is divided by what, in one line.
        ratio: Median of the paired ratios.
        low: Smallest of them.
        high: Largest of them.
        at_most: The figure aimed at; None where there is none.
        repeats: Number of pairs.
        details: Further figures, such as the medians of the parts in seconds.
    """

    case: str
    compares: str
    ratio: float
    low: float
    high: float
    at_most: float | None
    repeats: int
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the figure in plain types."""
        return asdict(self)


def seconds(function: Callable[[], object]) -> float:
    """Returns the time one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[list[float]]:
    """Times `functions` one after the other, again and again, after one round that does not count.

    Returns:
        For each repeat the seconds of each function.
    """
    for function in functions:
        function()
    return [[seconds(function) for function in functions] for _ in range(repeats)]


def summarize(
    case: str, compares: str, ratios: Sequence[float], at_most: float | None = None, **details: Any
) -> Result:
    """Returns a case's result from its paired ratios."""
    return Result(case, compares, median(ratios), min(ratios), max(ratios), at_most, len(ratios), details)


def table(results: Sequence[Result]) -> str:
    """Returns the results as a Markdown table."""
    lines = [["case", "compares", "median", "spread", "at most"]]
    for result in results:
        bound = "-" if result.at_most is None else f"{result.at_most:.2f}"
        spread = f"{result.low:.2f} to {result.high:.2f}"
        lines.append([result.case, result.compares, f"{result.ratio:.3f}", spread, bound])
    return aligned_table(lines, texts=2)

"""Progress of long loops outside training: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

INTERVAL = 30.0
"""Seconds before the first line, and between lines."""


@dataclass
class ProgressLines:
    """What is used like a bar, and prints a line where a loop takes long.

    Attributes:
        iterable: What is counted.
        description: What goes on.
        unit: What one item is called.
        total: Number of items, 0 where it is not known.
        unit_scale: Whether numbers are shortened, e.g. 12.3M.
    """

    iterable: Iterable[Any]
    description: str
    unit: str
    total: int
    unit_scale: bool
    done: int = 0
    last: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Prints nothing more."""

    def update(self, count: int) -> None:
        """Counts `count` more items."""
        self.done += count
        now = time.monotonic()
        if now - self.last < INTERVAL:
            return
        self.last = now
        numbers = [self.done, self.total] if self.total else [self.done]
        told = " of ".join(tqdm.format_sizeof(n) if self.unit_scale else str(n) for n in numbers)
        print(f"{self.description}: {told} {self.unit}", file=sys.stderr, flush=True)


def progress_bar(
    iterable: Iterable[Any] | None,
    description: str,
    unit: str,
    *,
    total: int | None = None,
    unit_scale: bool = False,
    disable: bool = False,
) -> tqdm[Any] | ProgressLines:
    """Returns what tells how far a loop is, in the way that goes with where standard error leads to.

    Args:
        iterable: What is counted; None where the caller updates the bar.
        description: What goes on.
        unit: What one item is called.
        total: Number of items where `iterable` does not tell it.
        unit_scale: Whether numbers are shortened, e.g. 12.3M.
        disable: Whether nothing is told.
    """
    if disable or sys.stderr.isatty():
        return tqdm(iterable, description, unit=unit, total=total, unit_scale=unit_scale, disable=disable)
    total = total or (len(iterable) if isinstance(iterable, Sized) else 0)
    return ProgressLines(iterable or (), description, unit, total, unit_scale)

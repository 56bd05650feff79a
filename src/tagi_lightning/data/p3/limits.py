"""What one rendering of a template may cost, and how values become text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.runtime import Context

MAX_CHARACTERS = 1_000_000
"""Characters a rendered template, or any value on the way to it, may have."""
MAX_WORK = 200_000
"""Loop steps, calls and (by 64 characters) text handled that one rendering may cost."""

STATE = " state"
"""Key of the rendering's state in the context; no template can name it, nor filters that start with a blank."""

FILL, FILL_END, TELL, TELL_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Unicode noncharacters that mark, in rendered text, what a row filled in and what only a condition read."""


def remove_marks(text: str) -> str:
    """Returns `text` without the marks."""
    for mark in (FILL, FILL_END, TELL, TELL_END):
        text = text.replace(mark, "")
    return text


class LimitError(Exception):
    """A rendering that costs too much work or builds too much text."""


class RowProblem(Exception):
    """A row that a template cannot be rendered on; the message is the kind of problem."""


class Choices(list[str]):
    """Answer choices; a label outside of them is an error, a negative one, too."""

    def choice(self, index: int) -> str:
        """Returns the choice at `index`.

        Raises:
            RowProblem: If there is none.
        """
        if not 0 <= index < len(self):
            raise RowProblem(f"label {index} that is no index of the {len(self)} answer choices")
        return self[index]


class RenderState:
    """What one rendering has left to spend, and its random choices.

    Attributes:
        variant: Which option `choice` takes among the targets; None draws one.
        drawn: Numbers of options, and the one taken, of each `choice` among the targets so far.
    """

    def __init__(self, key: str, variant: int | None = None) -> None:
        """Starts a rendering whose choices depend on `key` alone."""
        self.variant = variant
        self.drawn: list[tuple[int, int]] = []
        self._key, self._work = key, MAX_WORK
        self._random: random.Random | None = None

    def spend(self, size: int = 0) -> None:
        """Pays for one step that handles `size` characters or entries.

        Raises:
            LimitError: If nothing is left.
        """
        self._work -= 1 + size // 64
        if self._work < 0:
            raise LimitError(f"more than {MAX_WORK:,} steps")

    def draw(self, count: int) -> int:
        """Returns a number below `count`."""
        if count < 1:
            raise RowProblem("choice from an empty list")
        if self._random is None:
            self._random = random.Random(self._key)
        return self._random.randrange(count)


def weigh(values: Iterable[Any]) -> int:
    """Returns about how many characters `values` have when written.

    Raises:
        LimitError: If that is more than allowed; nothing is built to find out.
        RowProblem: If a value has no text.
    """
    total, stack = 0, list(values)
    while stack:
        value = stack.pop()
        total += 1
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, Mapping):
            stack.extend(value.keys())
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, int):
            total += value.bit_length() // 3
        elif value is not None and not isinstance(value, float):
            check_printable(value)
        if total + len(stack) > MAX_CHARACTERS:
            raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    return total


def to_text(value: Any) -> str:
    """Returns a value as a template prints it.

    Raises:
        RowProblem: If it is null, undefined or nothing that can be printed.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise RowProblem("empty (null) field printed")
    check_printable(value)
    weigh([value])
    return str(value)


def check_printable(value: Any) -> None:
    """Raises an error for a value that has no text: undefined, a function or an iterator."""
    if isinstance(value, Undefined):
        str(value)
    if not isinstance(value, int | float | list | tuple | dict):
        raise RowProblem(f"{type(value).__name__} printed, which is no text")


def state_of(context: Context) -> RenderState:
    """Returns the state of the rendering that `context` belongs to."""
    state: RenderState = context.parent[STATE]
    return state


def size_of(value: Any) -> int:
    """Returns the characters or entries of a value that has any."""
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0

"""The sandbox that templates run in: text operations alone, a budget of work and a cap on size.

Jinja's own sandbox stops access to Python's internals, but neither nested loops nor `"a" * 10**9`.
Here only the listed filters and methods can be called, each call and loop step is paid from a
budget, and nothing is built before its size is known to be allowed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, Undefined, pass_context
from jinja2.defaults import DEFAULT_FILTERS
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 1_000_000
"""Characters a rendered template, or any value on the way to it, may have."""
MAX_WORK = 200_000
"""Loop steps, calls and (by 64 characters) text handled that one rendering may cost."""

STATE = " state"
"""Key of the rendering's state in the context; no template can name it, nor filters that start with a blank."""

FILL, FILL_END, TELL, TELL_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Unicode noncharacters that mark, in rendered text, what a row filled in and what only a condition read."""

_KEPT_FILTERS = (
    *("capitalize", "lower", "upper", "title", "trim", "length", "count", "first", "last", "reverse", "unique"),
    *("int", "float", "abs", "list", "default", "d", "sort", "min", "max"),
    *("map", "select", "reject", "selectattr", "rejectattr"),
)
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (
        str,
        frozenset(
            [
                "lower",
                "upper",
                "title",
                "capitalize",
                "strip",
                "lstrip",
                "rstrip",
                "split",
                "rsplit",
                "splitlines",
                "partition",
                "rpartition",
                "join",
                "replace",
                "startswith",
                "endswith",
                "find",
                "rfind",
                "index",
                "count",
                "isdigit",
                "isalpha",
                "isupper",
                "islower",
                "removeprefix",
                "removesuffix",
            ]
        ),
    ),
    (list, frozenset({"index", "count"})),
    (tuple, frozenset({"index", "count"})),
    (dict, frozenset({"get", "items", "keys", "values"})),
)


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
    if isinstance(value, Undefined):
        return str(value)
    if not isinstance(value, int | float | list | tuple | dict):
        raise RowProblem(f"{type(value).__name__} printed, which is no text")
    weigh([value])
    return str(value)


def _state(context: Context) -> RenderState:
    state: RenderState = context.parent[STATE]
    return state


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns one of Jinja's filters that pays for its work."""
    marker = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _state(context).spend(_size(value))
        if marker is None:
            return function(value, *args, **kwargs)
        given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        return function(given[marker.name], value, *args, **kwargs)

    return run


@pass_context
def _choice(context: Context, items: Sequence[Any]) -> Any:
    _state(context).spend()
    return items[_state(context).draw(len(items))]


@pass_context
def _target_choice(context: Context, items: Sequence[Any]) -> Any:
    state = _state(context)
    state.spend()
    drawn = state.draw(len(items))
    state.drawn.append((len(items), drawn))
    return items[drawn if state.variant is None else state.variant]


@pass_context
def _join(context: Context, items: Iterable[Any], by: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        items = context.environment.call_filter("map", items, kwargs={"attribute": attribute}, context=context)
    texts = [to_text(item) for item in items]
    _state(context).spend(weigh(texts))
    if (len(texts) - 1) * len(by) > MAX_CHARACTERS:
        raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    return to_text(by).join(texts)


@pass_context
def _replace(context: Context, text: Any, old: str, new: str, count: int = -1) -> str:
    text = to_text(text)
    _state(context).spend(len(text))
    if text.count(old) * len(new) > MAX_CHARACTERS:
        raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    return text.replace(old, new, count)


@pass_context
def _string(context: Context, value: Any) -> str:
    _state(context).spend(_size(value))
    return to_text(value)


def _round(value: float, precision: int = 0) -> float:
    return round(value, max(-16, min(precision, 16)))


@pass_context
def _iterate(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    state = _state(context)
    for item in items:
        state.spend()
        yield item


@pass_context
def _bounded(context: Context, value: Any) -> Any:
    _state(context).spend(weigh([value]))
    return value


def _fill(value: Any) -> str:
    return f"{FILL}{to_text(value)}{FILL_END}"


def _tell(value: Any) -> str:
    return f"{TELL}{value}{TELL_END}" if isinstance(value, str | int | float) else ""


def _truth(value: Any) -> Any:
    return False if isinstance(value, Undefined) else value


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _metered(DEFAULT_FILTERS[name]) for name in _KEPT_FILTERS},
    "choice": _choice,
    "join": _join,
    "replace": _replace,
    "string": _string,
    "round": _round,
    " target choice": _target_choice,
    " iterate": _iterate,
    " bounded": _bounded,
    " fill": _fill,
    " tell": _tell,
    " truth": _truth,
}
"""Filters that templates may use, and those (with a leading blank) that `rewrite` puts in."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with the listed filters and methods, `range`, and nothing else to call."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=to_text, optimized=False)
        self.filters = dict(FILTERS)
        self.globals = {"range": range}

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Returns an entry; a label must be an index of the answer choices."""
        if isinstance(obj, Choices) and isinstance(argument, int):
            return obj.choice(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls `range` or one of the listed methods of texts, lists and mappings.

        Raises:
            SecurityError: If it is anything else.
        """
        state = _state(__context)
        if __obj is range:
            numbers = range(*args)
            if len(numbers) > MAX_WORK:
                raise LimitError(f"range of more than {MAX_WORK:,} numbers")
            return numbers
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS):
            raise SecurityError(f"call of {name or type(__obj).__name__}")
        if name == "join":
            return _join(__context, *args, by=owner)
        if name == "replace":
            return _replace(__context, owner, *args)
        state.spend(_size(owner))
        return __obj(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Returns the result of an operator that could build something huge."""
        _state(context).spend()
        containers = isinstance(left, str | list | tuple), isinstance(right, str | list | tuple)
        if operator == "**" and (abs(left) > MAX_WORK or abs(right) > 64):
            raise LimitError("power of large numbers")
        if operator == "%" and containers[0]:
            raise LimitError("formatting with %")
        if operator == "+" and any(containers):
            weigh([left, right])
        elif operator == "*" and any(containers):
            factor, weight = (right, weigh([left])) if containers[0] else (left, weigh([right]))
            if factor * weight > MAX_CHARACTERS:
                raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
        elif operator == "*" and max(abs(left), abs(right)) > 1 << 1024:
            raise LimitError("product of large numbers")
        return super().call_binop(context, operator, left, right)

"""The filters of templates: those of Jinja that only shorten or look, the others rewritten with bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import Undefined, pass_context
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context

from tagi_lightning.data.p3.limits import (
    FILL,
    FILL_END,
    MAX_CHARACTERS,
    TELL,
    TELL_END,
    LimitError,
    size_of,
    state_of,
    to_text,
    weigh,
)

_KEPT_FILTERS = (
    *("capitalize", "lower", "upper", "title", "trim", "length", "count", "first", "last", "reverse", "unique"),
    *("int", "float", "abs", "list", "default", "d", "sort", "min", "max"),
    *("map", "select", "reject", "selectattr", "rejectattr"),
)


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns one of Jinja's filters that pays for its work."""
    marker = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        state_of(context).spend(size_of(value))
        if marker is None:
            return function(value, *args, **kwargs)
        given = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        return function(given[marker.name], value, *args, **kwargs)

    return run


@pass_context
def _choice(context: Context, items: Sequence[Any]) -> Any:
    state_of(context).spend()
    return items[state_of(context).draw(len(items))]


@pass_context
def _target_choice(context: Context, items: Sequence[Any]) -> Any:
    state = state_of(context)
    state.spend()
    drawn = state.draw(len(items))
    state.drawn.append((len(items), drawn))
    return items[drawn if state.variant is None else state.variant]


@pass_context
def join(context: Context, items: Iterable[Any], by: str = "", attribute: str | int | None = None) -> str:
    """Joins texts, after a look at how long that gets."""
    if attribute is not None:
        items = context.environment.call_filter("map", items, kwargs={"attribute": attribute}, context=context)
    texts = [to_text(item) for item in items]
    state_of(context).spend(weigh(texts))
    if (len(texts) - 1) * len(by) > MAX_CHARACTERS:
        raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    return by.join(texts)


@pass_context
def replace(context: Context, text: Any, old: str, new: str, count: int = -1) -> str:
    """Replaces a text within another, after a look at how long that gets."""
    written = to_text(text)
    state_of(context).spend(len(written))
    if written.count(old) * len(new) > MAX_CHARACTERS:
        raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    return written.replace(old, new, count)


@pass_context
def _string(context: Context, value: Any) -> str:
    state_of(context).spend(size_of(value))
    return to_text(value)


def _round(value: float, precision: int = 0) -> float:
    return round(value, max(-16, min(precision, 16)))


@pass_context
def _iterate(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    state = state_of(context)
    for item in items:
        state.spend()
        yield item


@pass_context
def _bounded(context: Context, value: Any) -> Any:
    state_of(context).spend(weigh([value]))
    return value


def _fill(value: Any) -> str:
    return f"{FILL}{to_text(value)}{FILL_END}"


def _tell(value: Any) -> str:
    return f"{TELL}{value}{TELL_END}" if isinstance(value, str | int | float) else ""


def _truth(value: Any) -> Any:
    return False if isinstance(value, Undefined) else value


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: _metered(JINJA_FILTERS[name]) for name in _KEPT_FILTERS},
    "choice": _choice,
    "join": join,
    "replace": replace,
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

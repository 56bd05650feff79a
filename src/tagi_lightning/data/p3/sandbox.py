"""The sandbox that templates run in: text operations alone, a budget of work and a cap on size.

Jinja's own sandbox stops access to Python's internals, but neither nested loops nor `"a" * 10**9`.
Here only the listed filters and methods can be called, each call and loop step is paid from a
budget, and nothing is built before its size is known to be allowed.
"""

from __future__ import annotations

from typing import Any

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tagi_lightning.data.p3.filters import FILTERS, join, replace
from tagi_lightning.data.p3.limits import (
    MAX_CHARACTERS,
    MAX_WORK,
    Choices,
    LimitError,
    size_of,
    state_of,
    to_text,
    weigh,
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
        state = state_of(__context)
        if __obj is range:
            numbers = range(*args)
            if len(numbers) > MAX_WORK:
                raise LimitError(f"range of more than {MAX_WORK:,} numbers")
            return numbers
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS):
            raise SecurityError(f"call of {name or type(__obj).__name__}")
        if name == "join":
            return join(__context, args[0], str(owner))
        if name == "replace":
            return replace(__context, owner, *args)
        state.spend(size_of(owner))
        return __obj(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Returns the result of an operator that could build something huge."""
        state_of(context).spend()
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

"""Options as nested mappings and by dotted name, and what type a value of a file is of."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

EXECUTION = frozenset(
    {
        "run", "config", "ckpt_path", "corpora", "allow_missing", "overwrite", "max_skipped_steps", "inspect_every",
        "backbone.compile", "backbone.gradient_checkpointing",
    }
)  # fmt: skip
"""Options that say where, how fast and how closely watched a stage runs, and change nothing of what it computes."""

EXECUTION_OF_DATA = frozenset({"num_workers", "cache_dir"})
"""The same of a data module, and of one that it holds."""


def is_execution(key: str) -> bool:
    """Whether the option of this dotted name is one of `EXECUTION`, or of a data module's."""
    parts = key.split(".")
    return key in EXECUTION or parts[0] in EXECUTION or (parts[0] == "data" and parts[-1] in EXECUTION_OF_DATA)


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and leaves of nested mappings."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def fits(value: Any, hint: Any) -> bool:
    """Tells whether a value of JSON is of the type that `hint` means, a number being finite and true no number."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in arguments)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin in (tuple, list):
        return isinstance(value, tuple | list) and all(fits(each, arguments[0]) for each in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is hint

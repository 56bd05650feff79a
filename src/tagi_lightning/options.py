"""Options as nested mappings and by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and leaves of nested mappings."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values

"""YAML of unknown origin: measured before it is built, since nesting ends a process and aliases fill its memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

MAX_DEPTH = 100
"""Mappings and lists within one another."""
MAX_NODES = 1_000_000
"""Values, those that an alias stands for counted every time."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is ten times faster
    """PyYAML's safe loader, which takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping.

        Raises:
            ValueError: If it gives a key twice.
        """
        keys = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ValueError(f"key given twice: {Counter(keys).most_common(1)[0][0]!r}")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def parse_yaml(text: str, loader: type = Loader) -> Any:
    """Returns the value that a YAML text holds.

    Args:
        text: The text.
        loader: `Loader`, or a class made of it.

    Raises:
        ValueError: If it is no YAML of plain types, is nested too deeply or too large, or gives a key twice.
    """
    try:
        _measure(text)
        return yaml.load(text, loader)
    except Exception as error:  # what a tag's constructor raises depends on what it meets
        raise ValueError(f"no YAML of plain types: {' '.join(str(error).split()) or type(error).__name__}") from error


def _measure(text: str) -> None:
    """Raises `ValueError` for a text whose value would be too deep or too large."""
    anchored: dict[str | None, tuple[int, int]] = {}
    within: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # anchor, nodes and depth of what is not closed yet
    for event in yaml.parse(text, Loader):
        anchor, nodes, depth = None, 0, 0
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((event.anchor, 1, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes, depth = within.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, nodes = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == around for around, _, _ in within):
                raise ValueError(f"{event.anchor!r} holds itself")
            nodes, depth = anchored.get(event.anchor, (1, 0))
        if anchor is not None:
            anchored[anchor] = nodes, depth
        around, total, deepest = within[-1]
        within[-1] = around, total + nodes, max(deepest, depth + 1)
        if len(within) + depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if total + nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values")

"""The paper's subsets of Super-NaturalInstructions' training categories (Table 11)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from importlib import resources

import yaml

from tagi_lightning.data.report import DataReport


@cache
def category_groups() -> dict[int, dict[str, int]]:
    """Returns Table 11: the categories, with their number of tasks, that each subset adds to the one before."""
    text = resources.files("tagi_lightning.data").joinpath("sni_categories.yaml").read_text(encoding="utf-8")
    groups: dict[int, dict[str, int]] = yaml.safe_load(text)
    return groups


def subset(size: int) -> dict[str, int]:
    """Returns the paper's subset of `size` categories with the number of tasks of each.

    Args:
        size: 6, 15, 30 or 60.

    Raises:
        ValueError: If the paper has no subset of this size.
    """
    groups = category_groups()
    if size not in groups:
        raise ValueError(f"no subset of {size} categories, allowed: {', '.join(map(str, groups))}")
    return {name: count for until, group in groups.items() if until <= size for name, count in group.items()}


def select_categories(wanted: int | Sequence[str], present: Collection[str], report: DataReport) -> frozenset[str]:
    """Returns those of the `present` categories that are wanted.

    Args:
        wanted: Size of one of the paper's subsets, or names that must all be present.
        present: Categories of the training tasks at hand.
        report: Receives an error for an unknown size or name, and notes categories that no subset knows.
    """
    if isinstance(wanted, int):
        try:
            names = frozenset(subset(wanted))
        except ValueError as error:
            report.error("unknown category subset", str(error))
            return frozenset()
        for name in sorted(set(present) - subset(max(category_groups())).keys()):
            report.note("category outside the paper's table, in no subset", name)
        return names & frozenset(present)
    for name in wanted:
        if name not in present:
            report.error(f"unknown category (allowed: {', '.join(sorted(present))})", repr(name))
    return frozenset(wanted)

"""The benchmark: ratios of two things that take turns in one process. One file a group of cases."""

from __future__ import annotations

from collections.abc import Callable

from tagi_lightning.bench.measure import Result
from tagi_lightning.bench.rank import rank_scoring

CASES: dict[str, Callable[[str, int], list[Result]]] = {"rank": rank_scoring}
"""Groups of cases by name: each takes the size of the models and the number of paired repeats."""

"""The benchmark: ratios of two things that take turns in one process. One file a group of cases."""

from __future__ import annotations

from collections.abc import Callable

from tagi_lightning.bench import data, inference, prefix
from tagi_lightning.bench.distill import distillation
from tagi_lightning.bench.measure import Result
from tagi_lightning.bench.rank import rank_scoring
from tagi_lightning.bench.teachers import teachers_together

CASES: dict[str, Callable[[str, int], list[Result]]] = {
    "flops": inference.flops,
    "generation": inference.generation,
    "second_input": inference.second_input,
    "known_task": inference.known_task,
    "mixed_tasks": inference.mixed_tasks,
    "preparation": inference.preparation,
    "prefix": prefix.prefix,
    "rank": rank_scoring,
    "teachers": teachers_together,
    "distill": distillation,
    "tokenise": data.tokenise,
    "padding": data.padding,
}
"""Groups of cases by name: each takes the size of the models and the number of paired repeats."""

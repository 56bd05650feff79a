"""Paired bootstrap over tasks: what the difference of two systems is worth on other tasks of the same kind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8
FEWEST_TASKS = 5
"""Below this many tasks no interval is given."""


@dataclass(frozen=True)
class Difference:
    """The reference minus another system.

    Attributes:
        mean: Difference of their averages.
        low: Lower end of the interval; None with too few tasks.
        high: Upper end.
        detectable: Smallest true difference that would be found in POWER of all such sets of tasks.
        tasks: Number of tasks.
    """

    mean: float
    low: float | None
    high: float | None
    detectable: float | None
    tasks: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_bootstrap(
    reference: Mapping[str, float], other: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> Difference:
    """Compares two systems over tasks drawn with replacement, the same draw for both.

    Args:
        reference: Score of the reference by task, averaged over seeds.
        other: The other system's, over the same tasks.
        weights: How much each task counts, its instances for instance; None where all count the same.

    Returns:
        The difference with the interval between percentiles of its resamples, those that Student's t and not the normal
        distribution asks for ("expanded percentiles", Hesterberg 2015), since plain ones are too narrow for few tasks.
        Resamples depend on the names of the tasks alone, so that equal input gives equal output and all rows of a table
        share them.

    Raises:
        ValueError: If the systems were not scored on the same tasks.
    """
    if reference.keys() != other.keys():
        raise ValueError(f"tasks differ: {', '.join(sorted(reference.keys() ^ other.keys())[:5])}")
    tasks = sorted(reference)
    gap = np.array([reference[task] - other[task] for task in tasks])
    weight = np.array([1.0 if weights is None else weights[task] for task in tasks])
    mean = float((weight * gap).sum() / weight.sum())
    if len(tasks) < FEWEST_TASKS:
        return Difference(mean, None, None, None, len(tasks))
    seed = int.from_bytes(hashlib.sha256("\n".join(tasks).encode()).digest()[:8])
    draws = np.random.default_rng(seed).integers(0, len(tasks), (RESAMPLES, len(tasks)))
    means = (weight * gap)[draws].sum(1) / weight[draws].sum(1)
    # resampling n tasks has (n - 1) / n of the variance that drawing n new ones has
    widening = (len(tasks) / (len(tasks) - 1)) ** 0.5
    quantile = student_quantile((1 + CONFIDENCE) / 2, len(tasks) - 1)
    tail = NormalDist().cdf(-widening * quantile)
    low, high = np.quantile(means, [tail, 1 - tail])
    error = float(widening * means.std())
    detectable = (quantile + student_quantile(POWER, len(tasks) - 1)) * error
    return Difference(mean, float(low), float(high), detectable, len(tasks))


def student_quantile(probability: float, degrees: int) -> float:
    """Returns a quantile of Student's t by its expansion around the normal one, within 1 % from 4 degrees on."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3

"""Prefixes as values: keys and values that stand before the own tokens of every self-attention.

The same type holds what a hypernetwork generates (T tasks) and the one prefix of prefix tuning.
Shapes: B examples, T tasks, P prefix vectors, G key heads, h head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PrefixWeights:
    """Keys and values of P virtual tokens for several tasks; they occupy no positions.

    No position's bias is added to the scores on T5's prefix, and a decoder-only model's keys are not rotated: every
    query finds them at the same place, however long its own sequence is. Every score has the constant bias -log P, so
    that a prefix of zeros takes from a sequence what one token of score 0 would, and not P times that.

    Attributes:
        keys: Path of the attention -> keys [T, P, G h].
        values: Path of the attention -> values [T, P, G h].
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]

    @property
    def num_tasks(self) -> int:
        """T, the number of prefixes."""
        return next(iter(self.keys.values())).shape[0]

    @property
    def length(self) -> int:
        """P, the number of virtual tokens."""
        return next(iter(self.keys.values())).shape[1]

    @property
    def bias(self) -> float:
        """What is added to every score on the prefix, -log P."""
        return -math.log(self.length)

    def heads(self, path: str, head_size: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values for the attention at `path`, each [T, G, P, h]."""
        keys, values = (part[path].unflatten(-1, (-1, head_size)).transpose(1, 2) for part in (self.keys, self.values))
        return keys, values

    def map(self, function: Callable[[Tensor], Tensor]) -> PrefixWeights:
        """Returns a copy with `function` applied to all keys and values."""
        return PrefixWeights(
            {path: function(keys) for path, keys in self.keys.items()},
            {path: function(values) for path, values in self.values.items()},
        )

"""The mean of many adapters as one adapter of their own rank.

Shapes: T adapters, r rank, P prefix vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tagi_lightning.lora import LoraWeights
from tagi_lightning.prefix import PrefixWeights
from tagi_lightning.updates import inner


@dataclass(frozen=True)
class MeanLora:
    """The mean of several adapters' updates, as one adapter.

    Attributes:
        lora: Its factors, T = 1.
        adapters: How many adapters it is the mean of.
        kept: Share of the mean's squared norm that the rank holds, 0 to 1.
        agreement: The mean's squared norm over the mean squared norm of the adapters: 1 where all are one and the same,
            1 / adapters where they have nothing in common.
    """

    lora: LoraWeights
    adapters: int
    kept: float
    agreement: float


class UpdateMean:
    """Adds up updates (alpha / r) B A as matrices [out, in], one a site.

    Means of the factors would not do: mean(B) mean(A) is not the mean of B A, and factors are only told up to an
    invertible matrix between them. The mean of N updates has a rank of up to N r; `truncate` gives the nearest adapter
    of a rank, by SVD.
    """

    def __init__(self) -> None:
        """Starts with no adapters."""
        self.adapters = 0
        self._sums: dict[str, Tensor] = {}
        self._squares = 0.0

    def add(self, lora: LoraWeights) -> None:
        """Adds the updates of T adapters."""
        self.adapters += lora.num_tasks
        for site, factor in lora.a.items():
            a, b = factor.float(), lora.scale * lora.b[site].float()
            update = torch.einsum("tor,tri->oi", b, a)
            self._sums[site] = self._sums[site] + update if site in self._sums else update
            self._squares += float(inner(a, b, a, b).sum())

    def truncate(self, rank: int) -> MeanLora:
        """Returns the adapter of `rank` whose updates are nearest to the mean ones; there must have been some."""
        a, b, whole, held = {}, {}, 0.0, 0.0
        for site, total in self._sums.items():
            left, values, right = torch.linalg.svd(total / self.adapters, full_matrices=False)
            root = values[:rank].sqrt()
            b[site], a[site] = (left[:, :rank] * root)[None], (root[:, None] * right[:rank])[None]
            whole += float(values.square().sum())
            held += float(values[:rank].square().sum())
        agreement = _share(whole, self._squares / self.adapters)
        return MeanLora(LoraWeights(a, b, 1.0), self.adapters, _share(held, whole), agreement)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def mean_prefix(prefixes: Sequence[PrefixWeights]) -> PrefixWeights:
    """Returns the mean of all prefixes of several batches, T = 1."""

    def mean(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {path: torch.cat([part[path] for part in parts]).mean(0, keepdim=True) for path in parts[0]}

    return PrefixWeights(mean([prefix.keys for prefix in prefixes]), mean([prefix.values for prefix in prefixes]))

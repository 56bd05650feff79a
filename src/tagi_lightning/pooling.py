"""Pooling of instruction states to one vector a task.

Shapes: T tasks, I instruction tokens, d width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

PoolingKind = Literal["mean", "last", "attention", "mean+attention"]
"""Masked mean; the last token's state; a mean weighted by a learned query; mean and attention side by side."""


class Pooling(nn.Module):
    """Pools instruction states over their tokens; padding never counts."""

    def __init__(self, width: int, kind: PoolingKind) -> None:
        """Creates a pooling of `kind` over states of `width`."""
        super().__init__()
        self.kind = kind
        self.width = 2 * width if kind == "mean+attention" else width
        self.query = nn.Parameter(torch.zeros(width)) if "attention" in kind else None

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pools [T, I, d] under mask [T, I] to [T, d], or [T, 2 d] for mean and attention."""
        weights = [self._weights(kind, states, mask) for kind in self.kind.split("+")]
        return torch.cat([torch.einsum("ti,tid->td", each, states) for each in weights], dim=-1)

    def _weights(self, kind: str, states: Tensor, mask: Tensor) -> Tensor:
        if kind == "last":
            ends = mask.sum(-1, keepdim=True) - 1
            weights = torch.zeros_like(mask, dtype=states.dtype).scatter(-1, ends, 1)
        elif kind == "mean":
            weights = mask.to(states.dtype)
        else:
            assert self.query is not None
            scores = states @ self.query.to(states.dtype) / states.shape[-1] ** 0.5
            weights = scores.masked_fill(mask == 0, float("-inf")).softmax(-1)
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)

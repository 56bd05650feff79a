"""How adapters are compared: inner products, norms and cosines of their updates scale * B A, none of them ever formed.

Factors of a LoRA are told only up to an invertible matrix between them; updates are told wholly, and their inner
products follow from r x r Gram matrices. Shapes: T tasks, K teachers (or other adapters), N sites, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tagi_lightning.lora import LoraSite, LoraWeights

ROWS = 16
"""Adapters compared with all others at once."""


def inner(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """Returns the inner product of B A and B2 A2 of each task [T], in float32 at least.

    Args:
        a: A [T, r, in] of one site.
        b: B [T, out, r].
        a2: The other's A [T, r, in].
        b2: The other's B [T, out, r].
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        a, b, a2, b2 = (factor.to(dtype) for factor in (a, b, a2, b2))
        return ((b.mT @ b2) * (a @ a2.mT)).sum((1, 2))


def cross_inner(left: LoraWeights, right: LoraWeights, sites: Sequence[str]) -> Tensor:
    """Returns the inner products of all pairs of updates over `sites` together [T, K], in float64 on the CPU."""
    total = torch.zeros(left.num_tasks, right.num_tasks, dtype=torch.float64)
    for site in sites:
        a, b = right.a[site].float(), right.b[site].float()
        for start in range(0, left.num_tasks, ROWS):
            rows = slice(start, start + ROWS)
            inputs = torch.einsum("tri,ksi->trks", left.a[site][rows].float(), a)
            outputs = torch.einsum("tor,kos->trks", left.b[site][rows].float(), b)
            total[rows] += (inputs * outputs).sum((1, 3)).cpu()
    return left.scale * right.scale * total


def cosines(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Returns inner products [T, K] over the lengths of their sides [T] and [K]; 0 where one is zero."""
    lengths = left[:, None] * right[None]
    return torch.where(lengths > 0, products / lengths.clamp_min(1e-30), 0.0).clamp(-1, 1)


@torch.no_grad()
def update_cosine(generated: LoraWeights, taught: LoraWeights) -> Tensor:
    """Returns the cosine between each generated and its taught update over all sites, averaged over tasks."""
    pairs = [((generated.a[site], generated.b[site]), (taught.a[site], taught.b[site])) for site in generated.a]
    dot = torch.stack([inner(*own, *other) for own, other in pairs]).sum(0)
    norms = torch.stack([inner(*own, *own) for own, _ in pairs]).sum(0)
    taught_norms = torch.stack([inner(*other, *other) for _, other in pairs]).sum(0)
    return (dot / (norms * taught_norms).clamp_min(1e-20).sqrt()).mean()


def update_norms(lora: LoraWeights, sites: Sequence[LoraSite]) -> Tensor:
    """Returns the Frobenius norm of each task's update at each site [T, N]."""
    squares = [inner(a, b, a, b) for a, b in ((lora.a[site.name], lora.b[site.name]) for site in sites)]
    return lora.scale * torch.stack(squares, 1).clamp_min(0).sqrt()


@torch.no_grad()
def mean_norms(lora: LoraWeights, sites: Sequence[LoraSite]) -> dict[str, dict[str, Tensor]]:
    """Returns the mean Frobenius norms of A, B and the update, `a`, `b` and `ba`, over tasks and sites by stack."""
    found = {}
    for stack in dict.fromkeys(site.stack for site in sites):
        own = [site for site in sites if site.stack == stack]
        a, b = (torch.stack([part[site.name].flatten(1).norm(dim=1) for site in own]) for part in (lora.a, lora.b))
        found[stack] = {"a": a.mean(), "b": b.mean(), "ba": update_norms(lora, own).mean()}
    return found

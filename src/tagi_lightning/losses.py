"""The losses of the paper, each a function of tensors alone.

Every loss is a mean per example (over its target tokens, or over the elements of its adapter), so that a batch, its
halves under gradient accumulation and several devices give the same. Shapes: B examples, T tasks, O target tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.lora import LoraSite, LoraWeights

Lambda2 = float | Literal["sigmoid"]
"""Weight of L_ins: a number, or the paper's sigmoid(L_ins)."""


def token_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Averages per-token `values` [B, O] over each example's target tokens, to [B]; an example without any gives 0."""
    counted = labels != IGNORE_INDEX
    return (values * counted).sum(-1) / counted.sum(-1).clamp_min(1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def sequence_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each sequence's log-likelihood summed over its tokens [N], and its number of tokens [N].

    Args:
        logits: Teacher-forced logits [N, O, V].
        labels: Sequences with EOS, padded by `IGNORE_INDEX` [N, O].
    """
    return -_token_losses(logits, labels).sum(-1), (labels != IGNORE_INDEX).sum(-1)


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    scores = _at_least_float32(logits).transpose(1, 2)
    return F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="none")


def prediction_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns L_pred of each example [B]: cross entropy of c, as in eq. 3 and eq. 6.

    Args:
        logits: Student logits [B, O, V].
        labels: Targets with EOS, padded by `IGNORE_INDEX` [B, O].
    """
    return token_mean(_token_losses(logits, labels), labels)


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns L_kl of each example [B]: KL(teacher || student) over target tokens, times temperature^2 (eq. 5).

    Args:
        student: Student logits [B, O, V].
        teacher: Teacher logits [B, O, V].
        labels: Targets with EOS, padded by `IGNORE_INDEX` [B, O].
        temperature: Softens both distributions; 1 in eq. 5.
    """
    log_student = (_at_least_float32(student) / temperature).log_softmax(-1)
    log_teacher = (_at_least_float32(teacher) / temperature).log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return token_mean(divergence, labels) * temperature**2


def alignment_loss(
    generated: LoraWeights,
    taught: LoraWeights,
    *,
    target: Literal["factors", "product"] = "factors",
    reduction: Literal["mean", "sum"] = "mean",
    scale: float = 1.0,
) -> Tensor:
    """Returns L_ins of each task [T]: squared error between generated and taught adapters (eq. 4).

    Args:
        generated: The hypernetwork's adapters.
        taught: The teachers' adapters of the same tasks, with the same sites, rank and scale.
        target: factors compares A with A and B with B; product compares the updates B A, by r x r Gram matrices,
            which no change of basis between the factors disturbs.
        reduction: mean over elements and sites (the paper's MSE), or their sum.
        scale: Multiplies the loss; the paper's letter is mean with scale 1.

    Raises:
        ValueError: If sites, ranks or scales differ.
    """
    if generated.a.keys() != taught.a.keys():
        raise ValueError("generated and taught adapters sit at different sites; use one lora config for both")
    if generated.rank != taught.rank or generated.scale != taught.scale:
        raise ValueError(
            f"generated adapters have rank {generated.rank} and scale {generated.scale}, "
            f"teachers rank {taught.rank} and scale {taught.scale}"
        )
    total, elements = torch.zeros((), device=next(iter(generated.a.values())).device), 0
    for site, a in generated.a.items():
        b, taught_a, taught_b = generated.b[site], taught.a[site], taught.b[site]
        if target == "product":
            total = total + generated.scale**2 * _product_distance(a, b, taught_a, taught_b)
            elements += a.shape[2] * b.shape[1]
        else:
            total = total + (a - taught_a).square().sum((1, 2)) + (b - taught_b).square().sum((1, 2))
            elements += a[0].numel() + b[0].numel()
    return scale * (total / elements if reduction == "mean" else total)


def _product_distance(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """Returns |B A - B2 A2|^2 [T] without forming an [out, in] matrix."""
    return _update_inner(a, b, a, b) - 2 * _update_inner(a, b, a2, b2) + _update_inner(a2, b2, a2, b2)


def _update_inner(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """Returns the inner product of B A and B2 A2 [T], from r x r Gram matrices."""
    return ((b.transpose(1, 2) @ b2) * (a @ a2.transpose(1, 2))).sum((1, 2))


@torch.no_grad()
def update_cosine(generated: LoraWeights, taught: LoraWeights) -> Tensor:
    """Returns the cosine between generated and taught updates B A over all sites, averaged over tasks."""
    pairs = [((generated.a[site], generated.b[site]), (taught.a[site], taught.b[site])) for site in generated.a]
    dot = torch.stack([_update_inner(*own, *other) for own, other in pairs]).sum(0)
    norms = torch.stack([_update_inner(*own, *own) for own, _ in pairs]).sum(0)
    taught_norms = torch.stack([_update_inner(*other, *other) for _, other in pairs]).sum(0)
    return (dot / (norms * taught_norms).clamp_min(1e-20).sqrt()).mean()


def lambda_ins(loss_ins: Tensor, weight: Lambda2, detach: bool = False) -> Tensor:
    """Returns lambda_2 of each task [T]: a constant, or sigmoid(L_ins) as in the paper's appendix B.4.

    Args:
        loss_ins: L_ins of each task [T].
        weight: A number, or "sigmoid".
        detach: Whether the sigmoid is a constant for the gradient.
    """
    if weight == "sigmoid":
        return torch.sigmoid(loss_ins.detach() if detach else loss_ins)
    return torch.full_like(loss_ins, float(weight))


def update_norms(weights: LoraWeights, sites: Sequence[LoraSite]) -> dict[str, dict[str, Tensor]]:
    """Returns the mean Frobenius norms of A, B and scale * B A by stack, over tasks and sites."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for site in sites:
        a, b = weights.a[site.name].detach(), weights.b[site.name].detach()
        gram = _update_inner(a, b, a, b).clamp_min(0)
        norms = found.setdefault(site.stack, {"a": [], "b": [], "ba": []})
        norms["a"].append(a.flatten(1).norm(dim=1))
        norms["b"].append(b.flatten(1).norm(dim=1))
        norms["ba"].append(weights.scale * gram.sqrt())
    return {
        stack: {name: torch.stack(values).mean() for name, values in norms.items()} for stack, norms in found.items()
    }

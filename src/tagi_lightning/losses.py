"""The losses of the paper, each a function of tensors alone.

Every loss is a mean per example (over its target tokens, or over the elements of its adapter), so that a batch, its
halves under gradient accumulation and several devices give the same. Shapes: B examples, T tasks, O target tokens,
V vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.lora import LoraWeights
from tagi_lightning.updates import inner

Lambda2 = float | Literal["sigmoid"]
"""Weight of L_ins: a number, or the paper's sigmoid(L_ins)."""

LOG_TINY = -80.0
"""Least log-mass of a student's bucket: its inverse is still finite in float32."""


class TopK(NamedTuple):
    """A teacher's distribution over k + 1 buckets: its k likeliest tokens, and all others together.

    Attributes:
        ids: Token ids [N, k].
        log_probs: Their log-probabilities [N, k].
        log_rest: Log of the remaining mass [N]; -inf where k is the whole vocabulary.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Returns the k likeliest tokens of each row of `logits` [N, V], softened by `temperature`."""
    log_probs = (_at_least_float32(logits) / temperature).log_softmax(-1)
    kept, ids = log_probs.topk(min(k, log_probs.shape[-1]))
    # summed over the others, since 1 - sum(kept) is rounding where the k tokens hold nearly everything
    return TopK(ids, kept, log_probs.scatter_(1, ids, -torch.inf).logsumexp(-1))


def token_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Averages per-token `values` [B, O] over each example's target tokens, to [B]; an example without any gives 0."""
    counted = labels != IGNORE_INDEX
    return (values * counted).sum(-1) / counted.sum(-1).clamp_min(1)


def target_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the logits of the target tokens of all examples, one after another [N, V]."""
    counted = labels != IGNORE_INDEX
    return logits.flatten(0, 1) if counted.all() else logits[counted]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _RowLosses(torch.autograd.Function):
    """Cross entropy and KL(p || q) of rows, q = softmax(logits): one softmax and one gradient tensor for both.

    Autograd would hold and pass through several tensors the size of the vocabulary instead. p is either the softmax
    of a teacher's logits, or a `TopK`, whose buckets are q's, too.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor | None, buckets: TopK | None
    ) -> tuple[Tensor, Tensor]:
        """Returns -log q(target) [N] and KL(p || q) [N] of `logits` [N, V]."""
        ctx.dtype, ctx.exact = logits.dtype, buckets is None
        log_q = _at_least_float32(logits).log_softmax(-1)
        entropy = -log_q.gather(1, targets[:, None]).squeeze(1)
        if buckets is not None:
            top = log_q.gather(1, buckets.ids)
            log_rest = log_q.scatter_(1, buckets.ids, -torch.inf).logsumexp(-1).clamp_min(LOG_TINY)
            log_q.scatter_(1, buckets.ids, top)
            p, p_rest = buckets.log_probs.exp(), buckets.log_rest.exp()
            divergence = (p * (buckets.log_probs - top)).sum(-1)
            divergence += torch.where(p_rest > 0, p_rest * (buckets.log_rest - log_rest), 0)
            ctx.save_for_backward(log_q, targets, p, buckets.ids, (buckets.log_rest - log_rest).exp())
        elif teacher is not None:
            log_p = _at_least_float32(teacher).log_softmax(-1)
            p = log_p.exp()
            divergence = torch.linalg.vecdot(p, log_p.sub_(log_q))
            ctx.save_for_backward(log_q, targets, p)
        else:
            divergence = torch.zeros_like(entropy)
            ctx.save_for_backward(log_q, targets)
        return entropy, divergence

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, entropy: Tensor, divergence: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Returns the gradient by the logits: entropy (q - 1[target]) + divergence (q - p)."""
        log_q, targets, *teacher = ctx.saved_tensors
        gradient = log_q.exp()
        if not teacher:
            gradient *= entropy[:, None]
        elif ctx.exact:
            gradient.mul_((entropy + divergence)[:, None]).addcmul_(teacher[0], divergence[:, None], value=-1)
        else:
            # the bucket's mass is shared out among its tokens as the student shares it: q_j p_rest / q_rest
            p, ids, ratio = teacher
            kept = gradient.gather(1, ids) * ratio[:, None] - p
            gradient *= (entropy + divergence * (1 - ratio))[:, None]
            gradient.scatter_add_(1, ids, divergence[:, None] * kept)
        gradient.scatter_add_(1, targets[:, None], -entropy[:, None])
        return gradient.to(ctx.dtype), None, None, None


def sequence_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each sequence's log-likelihood summed over its tokens [N], and its number of tokens [N].

    Args:
        logits: Teacher-forced logits [N, O, V].
        labels: Sequences with EOS, padded by `IGNORE_INDEX` [N, O].
    """
    return -_row_losses(logits, labels)[0].sum(-1), (labels != IGNORE_INDEX).sum(-1)


def _row_losses(
    student: Tensor, labels: Tensor, teacher: Tensor | TopK | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns cross entropy and divergence of every target token, 0 at padding, each [B, O]."""
    counted = labels != IGNORE_INDEX
    rows, buckets = target_rows(student, labels), None
    if isinstance(teacher, TopK):
        teacher, buckets = None, teacher
    elif teacher is not None:
        teacher = target_rows(teacher, labels)
    if temperature != 1.0:
        rows, teacher = rows / temperature, teacher / temperature if teacher is not None else None
    losses = _RowLosses.apply(rows, labels[counted], teacher, buckets)
    entropy, divergence = (each.new_zeros(labels.shape).masked_scatter(counted, each) for each in losses)
    return entropy, divergence


def prediction_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns L_pred of each example [B]: cross entropy of c, as in eq. 3 and eq. 6.

    Args:
        logits: Student logits [B, O, V].
        labels: Targets with EOS, padded by `IGNORE_INDEX` [B, O].
    """
    return token_mean(_row_losses(logits, labels)[0], labels)


def distillation_loss(student: Tensor, teacher: Tensor | TopK, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns L_kl of each example [B]: KL(teacher || student) over target tokens, times temperature^2 (eq. 5).

    With a `TopK` it is the divergence of the k + 1 buckets: at most the exact one, and equal to it where k = V.

    Args:
        student: Student logits [B, O, V].
        teacher: Teacher logits [B, O, V], or the `TopK` of the batch's N target tokens at the same temperature.
        labels: Targets with EOS, padded by `IGNORE_INDEX` [B, O].
        temperature: Softens both distributions; 1 in eq. 5.
    """
    return token_mean(_row_losses(student, labels, teacher, temperature)[1], labels) * temperature**2


def prediction_and_distillation_loss(
    student: Tensor, teacher: Tensor | TopK, labels: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns `prediction_loss` and `distillation_loss`, from one softmax where the temperature is 1."""
    if temperature != 1.0:
        return prediction_loss(student, labels), distillation_loss(student, teacher, labels, temperature)
    entropy, divergence = _row_losses(student, labels, teacher)
    return token_mean(entropy, labels), token_mean(divergence, labels)


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
    """Returns |B A - B2 A2|^2 [T] without forming an [out, in] matrix: a difference that 16 bits would lose."""
    return inner(a, b, a, b) - 2 * inner(a, b, a2, b2) + inner(a2, b2, a2, b2)


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

"""Attention to [memory ; own tokens] that reads a memory's keys and values once a task, not an example.

What stands before the own tokens is an instruction, a generated prefix, or a prefix and then an instruction.
Shapes: B examples, T tasks, H query heads, G key heads, Q queries, I instruction tokens, S own tokens, h head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join_mask(memory_mask: Tensor, own_mask: Tensor | None, own_tokens: int) -> Tensor:
    """Returns the attention mask [B, 1, Q or 1, I + S] over [instruction ; own tokens].

    Args:
        memory_mask: 1 for instruction tokens, 0 for padding, or what is added to their scores [B, I].
        own_mask: Boolean or additive mask of the own tokens [B, 1, Q or 1, S]; None where all are seen.
        own_tokens: S.
    """
    memory = _as_mask(memory_mask)[:, None, None, :]
    if own_mask is None:
        own_mask = torch.ones(len(memory), 1, 1, own_tokens, dtype=torch.bool, device=memory.device)
    for dtype in {memory.dtype, own_mask.dtype} - {torch.bool}:
        memory, own_mask = additive(memory, dtype), additive(own_mask, dtype)
    own_mask = own_mask.expand(len(memory), -1, -1, -1)
    return torch.cat([memory.expand(-1, -1, own_mask.shape[2], -1), own_mask], dim=-1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what a mask, boolean or of 1 and 0, adds to scores; an additive one as it is."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Returns the mask of the last `queries` of `keys` tokens [1, 1, queries, keys]."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def run_index(tasks: int, rows: int, device: torch.device) -> Tensor:
    """Returns the task of each of `rows` rows that stand in equal runs, one a task."""
    return torch.arange(tasks, device=device).repeat_interleave(rows // tasks)


def prepend(before: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns keys and values of [memory ; own tokens], each [B, G, I + S, h], the memory copied to its examples.

    Args:
        before: Keys and values of the memory, each [T, G, I, h].
        own: Keys and values of each example's own tokens, each [B, G, S, h].
        rows: Row of `before` for each example [B].
    """
    keys, values = (torch.cat([x.to(y.dtype)[rows], y], dim=2) for x, y in zip(before, own, strict=True))
    return keys, values


def attend(
    query: Tensor, memory: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], mask: Tensor, scaling: float
) -> Tensor:
    """Returns softmax attention [B, H, Q, h] to [instruction ; own tokens], copying no instruction to its examples.

    Args:
        query: Queries of the examples, T equal runs of them, one a task in order [B, H, Q, h].
        memory: Keys and values of the instructions, each [T, G, I, h].
        own: Keys and values of each example's own tokens, each [B, G, S, h].
        mask: What is added to the scores [B, 1, Q or 1, I + S]; see `join_mask` and `additive`.
        scaling: Factor on the scores.
    """
    batch, heads, queries, size = query.shape
    tasks, groups, tokens, _ = memory[0].shape
    run, rows = batch // tasks, heads // groups * queries
    keys, values = (part.to(query.dtype).flatten(0, 1) for part in memory)
    own_keys, own_values = (part.flatten(0, 1) for part in own)
    # query heads of one key head side by side; then the examples of one task as well
    by_group = (query * scaling).reshape(batch * groups, rows, size)
    by_task = by_group.view(tasks, run, groups, rows, size).transpose(1, 2).reshape(tasks * groups, run * rows, size)
    scores = torch.bmm(by_task, keys.transpose(1, 2)).view(tasks, groups, run, rows, tokens).transpose(1, 2)
    own_scores = torch.bmm(by_group, own_keys.transpose(1, 2))
    scores = torch.cat([scores.reshape(batch * groups, rows, tokens), own_scores], dim=-1)
    masked = scores.view(batch, groups, -1, queries, scores.shape[-1]) + mask[:, :, None]
    weights = masked.softmax(-1, dtype=torch.float32).to(query.dtype).view_as(scores)
    on_memory, on_own = weights.split([tokens, own_scores.shape[-1]], dim=-1)
    on_memory = on_memory.view(tasks, run, groups, rows, tokens).transpose(1, 2)
    read = torch.bmm(on_memory.reshape(tasks * groups, run * rows, tokens), values)
    read = read.view(tasks, groups, run, rows, size).transpose(1, 2).reshape(batch * groups, rows, size)
    return torch.baddbmm(read, on_own, own_values).view(batch, heads, queries, size)


def _as_mask(mask: Tensor) -> Tensor:
    return mask if mask.is_floating_point() else mask.bool()

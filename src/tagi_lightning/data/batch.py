"""Padded batches: what a data module yields and a stage reads.

Shapes: B examples, T distinct tasks, I instruction tokens, S input tokens, P tokens of the
concatenated prompt, O output tokens, C answer choices of all examples together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of padded target positions, ignored by every loss."""


class _TensorFields:
    """Applies a function to every tensor field of a dataclass, at any depth."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Returns a copy with `function` applied to every tensor."""
        mapped: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                mapped[field.name] = function(value)
            elif isinstance(value, _TensorFields):
                mapped[field.name] = value.map(function)
        return replace(self, **mapped)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Returns a copy with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class Tokens(_TensorFields):
    """Right-padded token rows.

    Attributes:
        ids: Token ids, int64 [N, L].
        mask: 1 for tokens and 0 for padding, int64 [N, L].
        segments: Parts of equal width L / segments that a row consists of, each right-padded and read apart.
    """

    ids: Tensor
    mask: Tensor
    segments: int = 1

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape or self.ids.dim() != 2:
            shapes = f"{tuple(self.ids.shape)} and {tuple(self.mask.shape)}"
            raise ValueError(f"Tokens needs ids and mask of one shape [N, L], got {shapes}")

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]], pad_id: int) -> Tokens:
        """Right-pads `rows` of token ids to their longest, one token at least."""
        length = max([1, *map(len, rows)])
        ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
            mask[index, : len(row)] = 1
        return cls(ids, mask)

    @classmethod
    def pad_segments(cls, rows: Sequence[Sequence[Sequence[int]]], pad_id: int) -> Tokens:
        """Pads rows of parts: each part to the longest of all, and rows of fewer parts than another by empty ones."""
        segments = max(1, *map(len, rows))
        parts = [part for row in rows for part in (*row, *[()] * (segments - len(row)))]
        padded = cls.pad(parts, pad_id)
        return cls(padded.ids.reshape(len(rows), -1), padded.mask.reshape(len(rows), -1), segments)

    def apart(self) -> Tokens:
        """Returns the segments as rows of their own [N x segments, L / segments].

        One without any token shows one of padding, since attention needs something to rest on.
        """
        if self.segments == 1:
            return self
        ids, mask = (tensor.reshape(len(self) * self.segments, -1) for tensor in (self.ids, self.mask))
        return Tokens(ids, torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1))

    def __len__(self) -> int:
        return self.ids.shape[0]


def pad_labels(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-pads target rows with `IGNORE_INDEX` to int64 [B, O]."""
    tokens = Tokens.pad(rows, pad_id=0)
    return tokens.ids.masked_fill(tokens.mask == 0, IGNORE_INDEX)


@dataclass(frozen=True)
class TextBatch(_TensorFields):
    """Plain sequence-to-sequence examples, for training a backbone.

    Attributes:
        source: Encoder input [B, S].
        labels: Targets with EOS, padded by `IGNORE_INDEX` [B, O].
    """

    source: Tokens
    labels: Tensor


@dataclass(frozen=True)
class TaskBatch(_TensorFields):
    """B examples of T distinct tasks, grouped by task.

    Attributes:
        instruction: The tasks' instructions, the paper's a [T, I].
        input: Bare inputs with output cue, the paper's b [B, S].
        labels: Targets c with EOS, padded by `IGNORE_INDEX` [B, O].
        task_index: Row of `instruction` each example belongs to, non-decreasing [B].
        category: Index of each task's teacher in the bank, -1 where it has none [T].
        prompt: Instruction and input concatenated, (a;b) [B, P]; None where not asked for.
        demonstrations: K demonstrations of each task, inputs with answers, as the segments of a row [T, K D]; those
            that a task lacks are padding. None where not asked for.
        demonstrated_prompt: The demonstrations that fit and the prompt, concatenated [B, Q]; None where either was not
            asked for.
        tasks: Names of the tasks, T long.
        ids: Instance ids, B long.
        references: Acceptable outputs of each example, B long.
        inputs: Input texts, B long; only where predictions are made.
        choices: Answer choices with EOS, those of an example one after another [C, O]; None where none is ranked.
        choice_index: Example each choice belongs to, non-decreasing [C]; None with `choices`.
        gold: Index of each example's right choice among its own, -1 where it is not ranked [B]; None with `choices`.
        choice_texts: Texts of each example's choices, B long; empty with `choices`.
    """

    instruction: Tokens
    input: Tokens
    labels: Tensor
    task_index: Tensor
    category: Tensor
    prompt: Tokens | None = None
    demonstrations: Tokens | None = None
    demonstrated_prompt: Tokens | None = None
    tasks: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    inputs: tuple[str, ...] = ()
    choices: Tokens | None = None
    choice_index: Tensor | None = None
    gold: Tensor | None = None
    choice_texts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.task_index.shape != (len(self.input),):
            raise ValueError(f"task_index must be [{len(self.input)}], got {tuple(self.task_index.shape)}")
        if self.category.shape != (len(self.instruction),):
            raise ValueError(f"category must be [{len(self.instruction)}], got {tuple(self.category.shape)}")

    def __len__(self) -> int:
        return len(self.input)

"""Instruction fusion: cross-attention from every encoder block to the instruction (paper eq. 1).

F_l = S_l + g_l Attn(RMSNorm(S_l), I), with g_l = tanh(gate_l) and gate_l = 0 at the start, so that an untrained
fusion leaves the backbone as it is. `norm="post"` is the paper's letter, RMSNorm(S_l + Attn(S_l, I)), which does not.
Shapes: B examples, T tasks, S input tokens, I instruction tokens, d width, H heads, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi_lightning.data.ranges import check_range


@dataclass(frozen=True)
class FusionConfig:
    """Encoder fusion (eq. 1)."""

    enabled: bool = True
    """Whether the encoder attends to the instruction."""
    width: int | None = None
    """Inner width of the attention; null means the backbone's heads x head size."""
    norm: Literal["pre", "post"] = "pre"
    """pre: gated residual, nothing changes at the start; post: the paper's residual then norm, no such promise."""

    def __post_init__(self) -> None:
        check_range({"fusion.width": self.width}, least=1)


@dataclass(frozen=True)
class FusionStates:
    """Keys and values of T instructions for every encoder block, with the layers that read them.

    Attributes:
        layers: The fusion layers, one a block.
        keys: Keys of each block [T, H, I, width / H].
        values: Values of each block [T, H, I, width / H].
        mask: 1 for instruction tokens, 0 for padding [T, I].
        grouped: Whether the rows of every batch are T equal runs, one a task in order, so that no keys are copied.
    """

    layers: nn.ModuleList
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor
    grouped: bool = False

    def fuse(self, block: int, hidden: Tensor, task_index: Tensor) -> Tensor:
        """Returns F_l of encoder block `block` for hidden states S_l [B, S, d]."""
        keys, values, mask = self.keys[block], self.values[block], self.mask
        if not self.grouped:
            fused: Tensor = self.layers[block](hidden, keys[task_index], values[task_index], mask[task_index])
            return fused
        runs = hidden.reshape(len(mask), -1, hidden.shape[-1])
        output: Tensor = self.layers[block](runs, keys, values, mask)
        return output.view(hidden.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> FusionStates:
        """Returns a copy with `function` applied to keys and values."""
        return replace(self, keys=tuple(map(function, self.keys)), values=tuple(map(function, self.values)))


class FusionLayer(nn.Module):
    """Cross-attention of one encoder block to the instruction, with the backbone's heads and no position bias."""

    def __init__(self, width: int, inner: int, heads: int, norm: Literal["pre", "post"], eps: float = 1e-6) -> None:
        """Creates the layer for hidden states of `width`, attending in `inner` dimensions with `heads` heads."""
        super().__init__()
        if inner % heads:
            raise ValueError(f"fusion.width {inner} must be a multiple of the backbone's {heads} heads")
        self.heads = heads
        self.pre = norm == "pre"
        self.norm = nn.RMSNorm(width, eps=eps)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1)) if self.pre else None
        for linear in (self.q, self.k, self.v, self.o):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values of instruction states [T, I, d], each [T, H, I, inner / H]."""
        states = states.to(self.k.weight.dtype)
        return self._split(self.k(states)), self._split(self.v(states))

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Fuses hidden states with the instruction.

        Args:
            hidden: S_l [B, S, d].
            keys: Keys of each example's instruction [B, H, I, inner / H].
            values: Values of each example's instruction, likewise.
            mask: 1 for instruction tokens, 0 for padding [B, I].

        Returns:
            F_l [B, S, d].
        """
        source = self.norm(hidden.to(self.q.weight.dtype)) if self.pre else hidden.to(self.q.weight.dtype)
        query = self._split(self.q(source))
        attended = F.scaled_dot_product_attention(
            query, keys.to(query.dtype), values.to(query.dtype), attn_mask=mask.bool()[:, None, None, :]
        )
        update: Tensor = self.o(attended.transpose(1, 2).flatten(2)).to(hidden.dtype)
        if self.gate is None:
            normed: Tensor = self.norm(hidden + update).to(hidden.dtype)
            return normed
        return hidden + torch.tanh(self.gate).to(hidden.dtype) * update


class EncoderFusion(nn.Module):
    """The fusion layers of all L encoder blocks."""

    def __init__(self, config: FusionConfig, *, blocks: int, width: int, heads: int, inner: int) -> None:
        """Creates one layer a block.

        Args:
            config: Width and norm.
            blocks: Number of encoder blocks L.
            width: Hidden width d of the backbone.
            heads: Its attention heads H.
            inner: Its attention width, used where the config names none.
        """
        super().__init__()
        inner = config.width or inner
        self.layers = nn.ModuleList(FusionLayer(width, inner, heads, config.norm) for _ in range(blocks))

    def gates(self) -> list[Tensor]:
        """Returns g of each block, detached; empty with post-norm, which has none."""
        return [torch.tanh(p.detach()).squeeze() for name, p in self.named_parameters() if name.endswith("gate")]

    def forward(self, states: Tensor, mask: Tensor) -> FusionStates:
        """Projects instruction states [T, I, d] to every block's keys and values, once a task."""
        pairs = [layer.keys_values(states) for layer in self.layers]  # type: ignore[operator]
        return FusionStates(self.layers, tuple(key for key, _ in pairs), tuple(value for _, value in pairs), mask)

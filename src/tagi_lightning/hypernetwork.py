"""The hypernetwork: what it reads of an instruction, and what it writes from that (paper eq. 2).

It emits A = A_0 + dA and B = dB, with dA = dB = 0 before training, A_0 being the teachers' own start.
A prefix is written by the same generators, as a LoRA of rank P would be: keys K = K_0 + dK in the place of A, values
V = dV in that of B. It starts with values of zero, and attention that is spared for it is lost: the backbone's answers
change a little at step 0, unlike LoRA's (see `PrefixWeights`).
Shapes: T tasks, I instruction tokens, d width, P prefix length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tagi_lightning.generators import GENERATORS, HypernetworkConfig
from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights, SiteGroups
from tagi_lightning.pooling import Pooling
from tagi_lightning.prefix import PrefixWeights

__all__ = ["Generated", "Hypernetwork", "HypernetworkConfig"]


class Generated(NamedTuple):
    """What a hypernetwork writes for T tasks; what it does not write is None."""

    lora: LoraWeights | None
    prefix: PrefixWeights | None


class Hypernetwork(nn.Module):
    """Pooling and generators: instruction states become LoRA, A = A_0 + dA and B = dB, a prefix likewise, or both."""

    states_mean: Tensor
    states_std: Tensor

    def __init__(
        self,
        sites: Sequence[LoraSite],
        width: int,
        config: HypernetworkConfig,
        lora: LoraConfig,
        prefix_sites: Sequence[LoraSite] = (),
    ) -> None:
        """Creates the hypernetwork for a backbone of `width` with `sites`.

        Args:
            sites: LoRA sites of the backbone.
            width: Hidden width d of the instruction states.
            config: Kind of pooling and generator, and what is written.
            lora: Rank, scale and the seed of A_0 and K_0.
            prefix_sites: Where a prefix stands; see `Backbone.prefix_sites`.
        """
        super().__init__()
        self.lora = lora
        self.reads_instruction = config.generator != "constant"
        pools = config.generator in ("shared", "paper")
        self.pooling = Pooling(width, config.pooling) if pools else None
        self.standardizes = config.standardize and self.reads_instruction
        if self.standardizes:
            self.register_buffer("states_mean", torch.zeros(width))
            self.register_buffer("states_std", torch.ones(width))
        kind = GENERATORS[config.generator]
        width = self.pooling.width if self.pooling is not None else width
        self.generator = self.prefix_generator = None
        if config.writes != "prefix":
            self.groups = SiteGroups(sites)
            self.generator = kind(sites, width, config, lora.rank)
            self._start("a0", self.groups, lora)
        if config.writes != "lora":
            self.prefix_groups = SiteGroups(prefix_sites)
            self.prefix_generator = kind(prefix_sites, width, config, config.prefix_length)
            self._start("k0", self.prefix_groups, LoraConfig(rank=config.prefix_length, seed=lora.seed))

    def _start(self, name: str, groups: SiteGroups, config: LoraConfig) -> None:
        """Keeps A_0 or K_0, a function of the seed: not saved, never trained."""
        for key, start in groups.initial_a(config).items():
            self.register_buffer(f"{name}_{key}", start, persistent=False)

    def forward(self, states: Tensor, mask: Tensor) -> Generated:
        """Generates the adapters of T tasks from their instruction states [T, I, d] and mask [T, I]."""
        read = self._read(states, mask)
        return Generated(
            self._write_lora(*read) if self.generator is not None else None,
            self._write_prefix(*read) if self.prefix_generator is not None else None,
        )

    @property
    def to_measure(self) -> bool:
        """Whether states are to be standardised and `measure` has not been called."""
        return self.standardizes and not bool(self.states_mean.any())

    def measure(self, pooled: Tensor) -> None:
        """Takes mean and deviation from N training instructions' states, each averaged over its tokens [N, d].

        Raises:
            ValueError: If there are fewer than two.
        """
        if len(pooled) < 2:
            raise ValueError("hypernetwork.standardize needs at least two training instructions")
        self.states_mean.copy_(pooled.mean(0))
        # a feature that hardly varies is not blown up
        self.states_std.copy_(pooled.std(0) + 1e-3)

    def _read(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Returns what the generators read: pooled vectors [T, d], or the states themselves and their mask."""
        states = states.to(next(self.parameters()).dtype)
        if not self.reads_instruction:
            return (states,)
        if self.standardizes:
            states = (states - self.states_mean) / self.states_std
        return (states, mask) if self.pooling is None else (self.pooling(states, mask),)

    def _write_lora(self, *read: Tensor) -> LoraWeights:
        assert self.generator is not None
        delta_a, delta_b = self.generator(*read)
        return LoraWeights(
            self.groups.unstack({key: getattr(self, f"a0_{key}") + delta for key, delta in delta_a.items()}),
            self.groups.unstack(delta_b),
            self.lora.scale,
            self.lora.dropout if self.training else 0.0,
        )

    def _write_prefix(self, *read: Tensor) -> PrefixWeights:
        assert self.prefix_generator is not None
        delta_k, delta_v = self.prefix_generator(*read)
        keys = {key: getattr(self, f"k0_{key}") + delta for key, delta in delta_k.items()}
        values = {key: delta.transpose(-1, -2) for key, delta in delta_v.items()}
        return PrefixWeights(self.prefix_groups.unstack(keys), self.prefix_groups.unstack(values))

"""The hypernetwork: pooling of instruction states, and a generator that writes LoRA weights (paper eq. 2).

Both generators emit A = A_0 + dA and B = dB, with dA = dB = 0 before training, A_0 being the teachers' own start.
Shapes: T tasks, I instruction tokens, d width, r rank, h hidden width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights, SiteGroups


@dataclass(frozen=True)
class HypernetworkConfig:
    """Pooling and generator."""

    enabled: bool = True
    """Whether LoRA is generated; without it, fusion and memory stay (the paper's "w/o hypernetwork")."""
    generator: Literal["shared", "paper", "constant"] = "shared"
    """shared: one network with learned site embeddings; paper: one MLP per attention module (eq. 2); constant: one
    LoRA for all instructions, which is multi-task LoRA without a hypernetwork, a control."""
    pooling: Literal["mean", "last", "attention"] = "mean"
    """mean: masked mean of the instruction states; last: the last token's; attention: weighted by a learned query."""
    hidden: int = 64
    """Hidden width h of the generator."""
    dropout: float = 0.0
    """Dropout on the generator's hidden layer while training."""


class Pooling(nn.Module):
    """Pools instruction states over their tokens; padding never counts."""

    def __init__(self, width: int, kind: Literal["mean", "last", "attention"]) -> None:
        """Creates a pooling of `kind` over states of `width`."""
        super().__init__()
        self.last = kind == "last"
        self.query = nn.Parameter(torch.zeros(width)) if kind == "attention" else None

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pools [T, I, d] under mask [T, I] to [T, d]."""
        if self.last:
            ends = mask.sum(-1, keepdim=True) - 1
            weights = torch.zeros_like(mask, dtype=states.dtype).scatter(-1, ends, 1)
        elif self.query is None:
            weights = mask.to(states.dtype)
        else:
            scores = states @ self.query.to(states.dtype) / states.shape[-1] ** 0.5
            weights = scores.masked_fill(mask == 0, float("-inf")).softmax(-1)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
        return torch.einsum("ti,tid->td", weights, states)


def _zero_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class PaperGenerator(nn.Module):
    """Eq. 2: (LoRA_l^Q, LoRA_l^V) = MLP_l(pooled; idx), one Linear-ReLU-Linear per attention module.

    idx is the paper's integer position id, appended to the pooled vector: with q and v it is 2l for q and 2l + 1 for
    v, l being the block in its own stack.
    """

    def __init__(self, sites: Sequence[LoraSite], width: int, config: HypernetworkConfig, rank: int) -> None:
        """Creates one network per attention module among `sites`, for pooled vectors of `width`."""
        super().__init__()
        self.rank = rank
        self.groups = SiteGroups(sites)
        modules: dict[str, list[LoraSite]] = defaultdict(list)
        for site in sites:
            modules[site.name.rpartition(".")[0]].append(site)
        self.sites = list(modules.values())
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width + 1, config.hidden),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                _zero_linear(config.hidden, rank * (group[0].in_features + group[0].out_features)),
            )
            for group in self.sites
        )

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns dA [T, N, r, in] and dB [T, N, out, r] of the N sites of each shape for pooled vectors [T, d]."""
        a, b = {}, {}
        for mlp, group in zip(self.mlps, self.sites, strict=True):
            for place, site in enumerate(group):
                position = pooled.new_full((len(pooled), 1), float(len(group) * site.block + place))
                flat_a, flat_b = mlp(torch.cat([pooled, position], dim=-1)).split(
                    [self.rank * site.in_features, self.rank * site.out_features], dim=-1
                )
                a[site.name] = flat_a.unflatten(-1, (self.rank, site.in_features))
                b[site.name] = flat_b.unflatten(-1, (site.out_features, self.rank))
        return self.groups.stack(a), self.groups.stack(b)


class SharedGenerator(nn.Module):
    """One network for all sites, told which site it writes by a learned embedding; one output head a site shape.

    On T5-Base at hidden 64 and rank 32 it has about 3 M weights where eq. 2 has 113 M.
    """

    def __init__(self, sites: Sequence[LoraSite], width: int, config: HypernetworkConfig, rank: int) -> None:
        """Creates the network for `sites` and pooled vectors of `width`."""
        super().__init__()
        self.rank = rank
        self.groups = SiteGroups(sites)
        self.norm = nn.LayerNorm(width)
        self.input = nn.Linear(width, config.hidden)
        self.embeddings = nn.ParameterDict(
            {key: torch.randn(len(group), config.hidden) for key, group in self.groups.groups.items()}
        )
        self.mix = nn.Linear(config.hidden, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict(
            {
                key: _zero_linear(config.hidden, rank * (group[0].in_features + group[0].out_features))
                for key, group in self.groups.groups.items()
            }
        )

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns dA [T, N, r, in] and dB [T, N, out, r] of the N sites of each shape for pooled vectors [T, d]."""
        hidden = self.input(self.norm(pooled))
        a, b = {}, {}
        for key, group in self.groups.groups.items():
            in_features, out_features = group[0].in_features, group[0].out_features
            features = torch.relu(hidden[:, None] + self.embeddings[key])
            features = self.dropout(torch.relu(self.mix(features) + features))
            flat_a, flat_b = self.heads[key](features).split(
                [self.rank * in_features, self.rank * out_features], dim=-1
            )
            a[key] = flat_a.unflatten(-1, (self.rank, in_features))
            b[key] = flat_b.unflatten(-1, (out_features, self.rank))
        return a, b


class ConstantGenerator(nn.Module):
    """One adapter whatever the instruction: what all tasks can be taught together, without a hypernetwork."""

    def __init__(self, sites: Sequence[LoraSite], width: int, config: HypernetworkConfig, rank: int) -> None:
        """Creates one dA and dB for each of `sites`; `width` and `config` play no part."""
        super().__init__()
        self.groups = SiteGroups(sites)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for key, group in self.groups.groups.items():
            self.a[key] = nn.Parameter(torch.zeros(len(group), rank, group[0].in_features))
            self.b[key] = nn.Parameter(torch.zeros(len(group), group[0].out_features, rank))

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns dA [T, N, r, in] and dB [T, N, out, r] of the N sites of each shape, the same for each of T tasks."""
        a, b = (
            {key: stack.expand(len(pooled), *stack.shape) for key, stack in stacks.items()}
            for stacks in (self.a, self.b)
        )
        return a, b


GENERATORS = {"shared": SharedGenerator, "paper": PaperGenerator, "constant": ConstantGenerator}


class Hypernetwork(nn.Module):
    """Pooling and generator: instruction states become LoRA weights, A = A_0 + dA and B = dB."""

    def __init__(self, sites: Sequence[LoraSite], width: int, config: HypernetworkConfig, lora: LoraConfig) -> None:
        """Creates the hypernetwork for a backbone of `width` with `sites`.

        Args:
            sites: LoRA sites of the backbone.
            width: Hidden width d of the instruction states.
            config: Kind of pooling and generator.
            lora: Rank, scale and the seed of A_0.
        """
        super().__init__()
        self.lora = lora
        self.groups = SiteGroups(sites)
        self.pooling = Pooling(width, config.pooling)
        self.generator = GENERATORS[config.generator](sites, width, config, lora.rank)
        # a function of the seed: not saved, never trained
        for key, a0 in self.groups.initial_a(lora).items():
            self.register_buffer(f"a0_{key}", a0, persistent=False)

    def forward(self, states: Tensor, mask: Tensor) -> LoraWeights:
        """Generates LoRA weights for T tasks from their instruction states [T, I, d] and mask [T, I]."""
        pooled = self.pooling(states.to(next(self.parameters()).dtype), mask)
        delta_a, delta_b = self.generator(pooled)
        return LoraWeights(
            self.groups.unstack({key: getattr(self, f"a0_{key}") + delta for key, delta in delta_a.items()}),
            self.groups.unstack(delta_b),
            self.lora.scale,
            self.lora.dropout if self.training else 0.0,
        )

"""Generators: networks that write the factors of a LoRA, or of a prefix, from what they read of an instruction.

All give dA = dB = 0 before training. Shapes: T tasks, I instruction tokens, d width, r rank, h hidden width, N sites of
one shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tagi_lightning.data.ranges import check_range
from tagi_lightning.lora import LoraSite, SiteGroups
from tagi_lightning.pooling import PoolingKind


@dataclass(frozen=True)
class HypernetworkConfig:
    """Pooling and generator."""

    enabled: bool = True
    """Whether LoRA is generated; without it, fusion and memory stay (the paper's "w/o hypernetwork")."""
    generator: Literal["shared", "attention", "paper", "constant"] = "shared"
    """shared: one network with learned site embeddings; attention: the same, and each site attends to the instruction
    by a query of its own, instead of pooling (as HINT does); paper: one MLP per attention module (eq. 2); constant:
    one LoRA or prefix for all instructions, which is multi-task tuning without a hypernetwork, a control."""
    writes: Literal["lora", "prefix", "both"] = "lora"
    """What is generated: LoRA, a prefix of keys and values for every self-attention, or both."""
    prefix_length: int = 32
    """Virtual tokens P of a generated prefix."""
    pooling: PoolingKind = "mean"
    """mean: masked mean of the instruction states; last: the last token's; attention: weighted by a learned query;
    mean+attention: both side by side. The attention generator needs none."""
    standardize: bool = False
    """Whether instruction states are centred and scaled by what the training instructions have in common, measured when
    training starts. The states of decoder-only models are alike for all instructions otherwise."""
    hidden: int = 64
    """Hidden width h of the generator."""
    heads: int = 4
    """Heads of the attention generator."""
    dropout: float = 0.0
    """Dropout on the generator's hidden layer while training."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("prefix_length", "hidden", "heads")}
        check_range({f"hypernetwork.{name}": value for name, value in counts.items()}, least=1)
        check_range({"hypernetwork.dropout": self.dropout}, least=0, below=1)
        if self.generator == "attention" and self.hidden % self.heads:
            raise ValueError(f"hypernetwork.hidden={self.hidden} must be a multiple of hypernetwork.heads={self.heads}")


def _zero_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _factors(flat: Tensor, rank: int, site: LoraSite) -> tuple[Tensor, Tensor]:
    """Splits [..., r (in + out)] into A [..., r, in] and B [..., out, r] of the shape of `site`."""
    a, b = flat.split([rank * site.in_features, rank * site.out_features], dim=-1)
    return a.unflatten(-1, (rank, site.in_features)), b.unflatten(-1, (site.out_features, rank))


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
                _zero_linear(config.hidden, rank * max(site.in_features + site.out_features for site in group)),
            )
            for group in self.sites
        )

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns dA [T, N, r, in] and dB [T, N, out, r] of the N sites of each shape for pooled vectors [T, d]."""
        a, b = {}, {}
        for mlp, group in zip(self.mlps, self.sites, strict=True):
            for place, site in enumerate(group):
                position = pooled.new_full((len(pooled), 1), float(len(group) * site.block + place))
                flat = mlp(torch.cat([pooled, position], dim=-1))
                # where keys have fewer heads than queries, their factors are the shorter ones
                flat = flat[..., : self.rank * (site.in_features + site.out_features)]
                a[site.name], b[site.name] = _factors(flat, self.rank, site)
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
            features = torch.relu(hidden[:, None] + self.embeddings[key])
            features = self.dropout(torch.relu(self.mix(features) + features))
            a[key], b[key] = _factors(self.heads[key](features), self.rank, group[0])
        return a, b


class AttentionGenerator(nn.Module):
    """Each site has a learned query that attends to the instruction's tokens; one network writes all sites' factors.

    HINT reads instructions in this way. Factors are divided by sqrt(h), so that a learning rate serves any width.
    """

    def __init__(self, sites: Sequence[LoraSite], width: int, config: HypernetworkConfig, rank: int) -> None:
        """Creates the network for `sites` and instruction states of `width`."""
        super().__init__()
        self.rank = rank
        self.heads = config.heads
        self.groups = SiteGroups(sites)
        hidden = config.hidden
        self.key, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.queries = nn.ParameterDict(
            {key: torch.randn(len(group), hidden) for key, group in self.groups.groups.items()}
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.outputs = nn.ModuleDict(
            {
                key: _zero_linear(hidden, rank * (group[0].in_features + group[0].out_features))
                for key, group in self.groups.groups.items()
            }
        )

    def forward(self, states: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns dA [T, N, r, in] and dB [T, N, out, r] for instruction states [T, I, d] under mask [T, I]."""
        keys, values = (self._split(layer(states)) for layer in (self.key, self.value))
        a, b = {}, {}
        for name, group in self.groups.groups.items():
            queries = self.queries[name].expand(len(states), -1, -1)
            found = scaled_dot_product_attention(self._split(queries), keys, values, mask[:, None, None].bool())
            features = queries + found.transpose(1, 2).flatten(2)
            features = self.dropout(self.norm(features + self.mlp(features)))
            flat = self.outputs[name](features) / features.shape[-1] ** 0.5
            a[name], b[name] = _factors(flat, self.rank, group[0])
        return a, b

    def _split(self, states: Tensor) -> Tensor:
        """Splits [T, N, h] into heads [T, heads, N, h / heads]."""
        split: Tensor = states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


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


GENERATORS = {
    "shared": SharedGenerator,
    "attention": AttentionGenerator,
    "paper": PaperGenerator,
    "constant": ConstantGenerator,
}

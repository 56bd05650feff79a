"""LoRA weights as values: y = W x + (alpha / r) B A x with A [r, in] and B [out, r], PEFT's orientation.

The same type holds the adapters a hypernetwork generates (T tasks) and a bank of taught ones (K teachers).
Shapes: B examples, T tasks (or K teachers), S tokens, r rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagi_lightning.data.ranges import check_range


@dataclass(frozen=True)
class LoraConfig:
    """Where LoRA sits and how large it is; teachers, student and generator share it."""

    rank: int = 32
    """Rank r of every update (Table 6: 32)."""
    alpha: float | None = None
    """Updates are scaled by alpha / rank; null means 2 x rank."""
    targets: tuple[str, ...] = ("q", "v")
    """Names of the projections that get LoRA, e.g. q, k, v, o."""
    stacks: tuple[str, ...] | None = None
    """Attention kinds that get LoRA (T5: encoder_self, decoder_self, decoder_cross); null means all."""
    dropout: float = 0.0
    """Dropout on the LoRA input while training."""
    seed: int = 0
    """Draws A_0, the one start of all teachers and of the generator."""

    def __post_init__(self) -> None:
        check_range({"lora.rank": self.rank}, least=1)
        check_range({"lora.alpha": self.alpha}, above=0)
        check_range({"lora.dropout": self.dropout}, least=0, below=1)
        if not self.targets:
            raise ValueError("lora.targets must name at least one projection, e.g. [q, v]")

    @property
    def scale(self) -> float:
        """The factor alpha / r."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank


class LoraSite(NamedTuple):
    """One linear layer of the backbone that an adapter updates.

    Attributes:
        name: Module path inside the Hugging Face model, e.g. `encoder.block.0.layer.0.SelfAttention.q`.
        in_features: Width of its input.
        out_features: Width of its output.
        stack: Kind of attention it belongs to, e.g. `encoder_self`.
        block: Index of its block in its own stack.
        target: Name of the projection, e.g. `q`.
    """

    name: str
    in_features: int
    out_features: int
    stack: str
    block: int
    target: str


@dataclass(frozen=True)
class LoraWeights:
    """LoRA factors of several tasks at every site.

    Attributes:
        a: Site name -> A [T, r, in].
        b: Site name -> B [T, out, r].
        scale: The factor alpha / r.
        dropout: Dropout on the LoRA input, used while gradients are recorded.
        grouped: Whether the rows of every batch are T equal runs, one a task in order, so that no adapter is copied.
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale: float
    dropout: float = 0.0
    grouped: bool = False

    @property
    def num_tasks(self) -> int:
        """T, the number of adapters."""
        return next(iter(self.a.values())).shape[0]

    @property
    def rank(self) -> int:
        """Rank r."""
        return next(iter(self.a.values())).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return next(iter(self.a.values())).device

    def index(self, tasks: Tensor) -> LoraWeights:
        """Returns the adapters of rows `tasks` [N], in that order."""
        return LoraWeights(
            {site: a[tasks] for site, a in self.a.items()},
            {site: b[tasks] for site, b in self.b.items()},
            self.scale,
            self.dropout,
        )

    def detach(self, dtype: torch.dtype | None = None) -> LoraWeights:
        """Returns a copy cut off from the graph, in `dtype` if one is given, without dropout."""
        return LoraWeights(
            {site: a.detach().to(dtype or a.dtype) for site, a in self.a.items()},
            {site: b.detach().to(dtype or b.dtype) for site, b in self.b.items()},
            self.scale,
        )

    def delta(self, site: str) -> Tensor:
        """Returns the update scale * B A of `site` [T, out, in]; for tests, merging and inspection only."""
        return self.scale * self.b[site] @ self.a[site]

    def add(self, output: Tensor, site: str, x: Tensor, task_index: Tensor | None) -> Tensor:
        """Returns `output` plus the update scale * B A x of `site`; `output` itself where the adapter has none.

        No tensor larger than [B, S, max(in, out)] or, where rows are not grouped, [B, r, in] is formed.

        Args:
            output: What the frozen layer gives [B, S, out].
            site: Name of the site.
            x: Its input [B, S, in].
            task_index: Adapter of each example [B]; may be None for a single adapter.

        Raises:
            ValueError: If several adapters come without a task index.
        """
        if site not in self.a:
            return output
        a, b = self.a[site].to(output.dtype), self.b[site].to(output.dtype)
        x = x.to(output.dtype)
        if self.dropout and torch.is_grad_enabled():
            x = F.dropout(x, self.dropout)
        if a.shape[0] == 1 or self.grouped:
            rows, onto = x.reshape(a.shape[0], -1, x.shape[-1]), output.reshape(a.shape[0], -1, output.shape[-1])
        elif task_index is not None:
            rows, onto, a, b = x, output, a[task_index], b[task_index]
        else:
            raise ValueError(f"{a.shape[0]} adapters were given without task_index")
        update = torch.baddbmm(onto, torch.bmm(rows, a.transpose(1, 2)), b.transpose(1, 2), alpha=self.scale)
        return update.view(output.shape)


def adapted_linear(
    linear: nn.Linear, site: str, x: Tensor, lora: LoraWeights | None, task_index: Tensor | None
) -> Tensor:
    """Returns linear(x), plus the update of `site` where `lora` has one [B, S, out]."""
    output: Tensor = linear(x)
    return output if lora is None else lora.add(output, site, x, task_index)


def initial_a(site: LoraSite, config: LoraConfig) -> Tensor:
    """Draws A_0 of one site [r, in], uniform in +-1/sqrt(in) as PEFT does, a function of (seed, site name) alone."""
    digest = hashlib.sha256(f"{config.seed}/{site.name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = site.in_features**-0.5
    start = torch.empty(config.rank, site.in_features, device="cpu")
    return start.uniform_(-bound, bound, generator=generator)


class SiteGroups:
    """Sites of one shape stacked together, so that a bank or a generator holds few large tensors."""

    def __init__(self, sites: Sequence[LoraSite]) -> None:
        """Groups `sites` by (in, out), keeping their order."""
        if not sites:
            raise ValueError("no LoRA site was found; check lora.targets and lora.stacks")
        self.sites = tuple(sites)
        shapes = sorted({(site.in_features, site.out_features) for site in sites})
        self.groups = {
            f"{in_features}x{out_features}": tuple(
                site for site in sites if (site.in_features, site.out_features) == (in_features, out_features)
            )
            for in_features, out_features in shapes
        }

    def stack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stacks one tensor a site [T, ...] by group [T, N, ...]; the inverse of `unstack`."""
        return {key: torch.stack([tensors[site.name] for site in group], 1) for key, group in self.groups.items()}

    def unstack(self, stacks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Splits group stacks [T, N, ...] into one tensor a site [T, ...]."""
        tensors = {}
        for key, sites in self.groups.items():
            # unbind's backward is one stack; indexing would zero-fill the whole stack once a site
            for site, tensor in zip(sites, stacks[key].unbind(1), strict=True):
                tensors[site.name] = tensor
        return {site.name: tensors[site.name] for site in self.sites}

    def initial_a(self, config: LoraConfig) -> dict[str, Tensor]:
        """Returns A_0 stacked by group [N, r, in]."""
        return {key: torch.stack([initial_a(site, config) for site in sites]) for key, sites in self.groups.items()}


class LoraBank(nn.Module):
    """K LoRA adapters as trainable parameters: the teachers, one a category (paper section 4, Table 6).

    All start from the same A_0 and from B = 0, so an untrained bank is the backbone.
    """

    def __init__(self, sites: Sequence[LoraSite], config: LoraConfig, names: Iterable[str]) -> None:
        """Creates one adapter for each of `names`, in that order.

        Args:
            sites: Where the adapters sit.
            config: Rank, scale and the seed of A_0.
            names: What each adapter is for, e.g. the categories.
        """
        super().__init__()
        self.config = config
        self.names = tuple(names)
        self.groups = SiteGroups(sites)
        count = len(self.names)
        if count == 0:
            raise ValueError("a bank needs at least one adapter name")
        self.a = nn.ParameterDict(
            {key: a0.expand(count, *a0.shape).clone() for key, a0 in self.groups.initial_a(config).items()}
        )
        self.b = nn.ParameterDict(
            {
                key: torch.zeros(count, len(group), group[0].out_features, config.rank)
                for key, group in self.groups.groups.items()
            }
        )

    def forward(self, adapters: Tensor | None = None) -> LoraWeights:
        """Returns the adapters with a leading K, or those numbered `adapters` [T] with a leading T."""
        count = len(self.names)
        if adapters is not None and len(adapters) == count and torch.equal(adapters.cpu(), torch.arange(count)):
            adapters = None

        def rows(stack: Tensor) -> Tensor:
            if adapters is None:
                return stack
            # embedding's backward adds to the bank's gradient in place; that of indexing makes it twice
            return F.embedding(adapters, stack.flatten(1)).view(-1, *stack.shape[1:])

        return LoraWeights(
            self.groups.unstack({key: rows(stack) for key, stack in self.a.items()}),
            self.groups.unstack({key: rows(stack) for key, stack in self.b.items()}),
            self.config.scale,
            self.config.dropout if self.training else 0.0,
        )

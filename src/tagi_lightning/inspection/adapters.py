"""What the hypernetwork writes for a set of tasks, as inner products and norms.

Adapters are compared by their updates, over all sites together; inner products give cosines, norms and points.
Shapes: T tasks, K teachers, N places that are written to, r rank, D dimensions of points.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tagi_lightning.inspection.tasks import InspectedTasks
from tagi_lightning.lora import LoraBank, LoraSite, LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.prefix import PrefixWeights
from tagi_lightning.updates import cosines, cross_inner, update_norms

FACTOR_BYTES = 2**30
"""Memory for the factors of all tasks; where they would take more, a part of the sites is compared."""
DIMENSIONS = 50
"""Dimensions of points at most."""


class Place(NamedTuple):
    """One thing that is written.

    Attributes:
        kind: What and where, e.g. `encoder_self q`.
        block: Index of its block.
    """

    kind: str
    block: int


@dataclass(frozen=True)
class Taught:
    """The teachers beside the generated adapters.

    Attributes:
        names: Their categories.
        cosines: Cosine of each generated update with each taught one [T, K].
    """

    names: tuple[str, ...]
    cosines: Tensor


@dataclass(frozen=True)
class Written:
    """What was written for T tasks, LoRA or prefixes.

    Attributes:
        kind: Which of both.
        places: What `norms` has a column for.
        norms: Frobenius norm of each task's update at each place [T, N].
        inner: Inner products of the tasks' updates over the compared places [T, T].
        compared: How many places are compared.
        taught: The teachers, where there are any.
    """

    kind: Literal["lora", "prefix"]
    places: tuple[Place, ...]
    norms: Tensor
    inner: Tensor
    compared: int
    taught: Taught | None = None

    @property
    def cosines(self) -> Tensor:
        """Cosines between the tasks' updates [T, T]; 0 where one is zero."""
        lengths = self.inner.diagonal().sqrt()
        return cosines(self.inner, lengths, lengths)

    @property
    def norm(self) -> Tensor:
        """Norm of each task's whole update [T]."""
        return self.norms.square().sum(1).sqrt()

    def points(self) -> tuple[Tensor, Tensor]:
        """Returns the tasks as points whose distances are those of their updates; see `points`."""
        return points(self.inner)


def points(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Returns principal coordinates [T, D] of what has these inner products [T, T], and each axis's share [D].

    With D = T - 1 the distances between them are exact; fewer axes are the nearest.
    """
    count = len(inner)
    centred = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
    values, vectors = torch.linalg.eigh(centred)
    order = values.argsort(descending=True)[: max(1, min(count - 1, DIMENSIONS))]
    kept = values[order].clamp_min(0)
    # the sign of an axis is free: the longest arm points upwards, so that pictures do not flip between steps
    arms = vectors[:, order]
    signs = arms.gather(0, arms.abs().argmax(0, keepdim=True)).sign()
    return arms * signs * kept.sqrt(), kept / values.clamp_min(0).sum().clamp_min(1e-30)


@torch.no_grad()
def collect(model: TagiModel, tasks: InspectedTasks, bank: LoraBank | None = None) -> Iterator[Written]:
    """Yields what the model writes for `tasks`: LoRA, prefixes or both; nothing where it has no hypernetwork.

    Args:
        model: The model.
        tasks: The T tasks.
        bank: The teachers; None for none.
    """
    hypernetwork = model.hypernetwork
    if hypernetwork is None:
        return
    compared = compared_sites(model.sites, len(tasks), model.config.lora.rank)
    loras, norms, prefixes = [], [], []
    for batch in tasks.batches:
        adapter = model.adapt(model.conditions(batch.to(model.backbone.model.device)))
        if adapter.lora is not None:
            norms.append(update_norms(adapter.lora, model.sites).cpu())
            loras.append(_only(adapter.lora, compared))
        if adapter.prefix is not None:
            prefixes.append(_beyond_start(model, adapter.prefix))
    if loras:
        yield _written_lora(model, loras, torch.cat(norms), bank)
    if prefixes:
        yield _written_prefixes(model, torch.cat(prefixes))


def compared_sites(sites: Sequence[LoraSite], tasks: int, rank: int) -> list[str]:
    """Returns the sites by which adapters are compared: all, or as many, drawn by chance, as memory holds."""
    names = [site.name for site in sites]
    size = sum(4 * tasks * rank * (site.in_features + site.out_features) for site in sites)
    count = max(1, len(names) * FACTOR_BYTES // max(size, FACTOR_BYTES))
    drawn = set(random.Random(0).sample(names, count))
    return [name for name in names if name in drawn]


def _only(lora: LoraWeights, sites: Sequence[str]) -> LoraWeights:
    return LoraWeights({s: lora.a[s].clone() for s in sites}, {s: lora.b[s].clone() for s in sites}, lora.scale)


def _written_lora(model: TagiModel, loras: Sequence[LoraWeights], norms: Tensor, bank: LoraBank | None) -> Written:
    sites = list(loras[0].a)
    a = {site: torch.cat([lora.a[site] for lora in loras]) for site in sites}
    b = {site: torch.cat([lora.b[site] for lora in loras]) for site in sites}
    lora = LoraWeights(a, b, loras[0].scale)
    inner, taught = cross_inner(lora, lora, sites), None
    if bank is not None:
        teachers = bank().detach()
        lengths = torch.stack([_length(teachers, row, sites) for row in range(teachers.num_tasks)])
        taught = Taught(bank.names, cosines(cross_inner(lora, teachers, sites), inner.diagonal().sqrt(), lengths))
    places = tuple(Place(f"{site.stack} {site.target}", site.block) for site in model.sites)
    return Written("lora", places, norms, inner, len(sites), taught)


def _length(lora: LoraWeights, row: int, sites: Sequence[str]) -> Tensor:
    one = lora.index(torch.tensor([row], device=lora.device))
    return cross_inner(one, one, sites).sqrt().squeeze()


def _beyond_start(model: TagiModel, prefix: PrefixWeights) -> Tensor:
    """Returns what is written of a prefix beyond its start, keys K - K_0 and values V of every place [T, 2 N, P G h].

    The start is the same for all tasks, and far longer than what is added to it.
    """
    assert model.hypernetwork is not None
    groups = model.hypernetwork.prefix_groups
    starts = groups.unstack({key: getattr(model.hypernetwork, f"k0_{key}")[None] for key in groups.groups})
    places = [
        part.flatten(1) for path, start in starts.items() for part in (prefix.keys[path] - start, prefix.values[path])
    ]
    return torch.stack(places, 1).float().cpu()


def _written_prefixes(model: TagiModel, prefixes: Tensor) -> Written:
    places = tuple(
        Place(f"{site.stack} {part}", site.block) for site in model.backbone.prefix_sites for part in ("keys", "values")
    )
    flat = prefixes.flatten(1).double()
    return Written("prefix", places, prefixes.norm(dim=2), flat @ flat.T, len(places))

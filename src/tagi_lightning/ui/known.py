"""Known tasks, and which of them a new adapter is nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.inspection.adapters import compared_sites
from tagi_lightning.inspection.answers import on_one_line
from tagi_lightning.lora import LoraSite, LoraWeights
from tagi_lightning.updates import cosines, cross_inner, update_norms

NAME = 80
"""Characters of a name that is made of an instruction's text."""


@dataclass(frozen=True)
class KnownTasks:
    """The adapters of K known tasks.

    Attributes:
        names: Their names.
        sites: The sites at which they are compared.
        lora: Their factors there.
    """

    names: tuple[str, ...]
    sites: tuple[LoraSite, ...]
    lora: LoraWeights

    @classmethod
    def read(cls, loaded: InstructedModel, instructions: Sequence[Instruction]) -> Self:
        """Generates the adapters of known instructions; of very many, a part of the sites is kept.

        Raises:
            ValueError: If one is too long for the model.
        """
        model = loaded.model
        compared = set(compared_sites(model.sites, len(instructions), model.config.lora.rank))
        sites = tuple(site for site in model.sites if site.name in compared)
        loras = [_at(each.lora, sites) for each in loaded.adapt_all(instructions) if each.lora is not None]
        a = {site.name: torch.cat([lora.a[site.name] for lora in loras]) for site in sites}
        b = {site.name: torch.cat([lora.b[site.name] for lora in loras]) for site in sites}
        names = tuple(each.name or on_one_line(each.text, NAME) for each in instructions)
        return cls(names, sites, LoraWeights(a, b, model.config.lora.scale))

    @cached_property
    def norms(self) -> Tensor:
        """Norms of the updates over the compared sites [K]."""
        return _norms(self.lora, self.sites)

    def nearest(self, lora: LoraWeights, count: int = 5) -> tuple[tuple[str, float], ...]:
        """Returns the tasks whose updates have the largest cosines with that of one adapter, and these."""
        own = _at(lora, self.sites)
        products = cross_inner(own, self.lora, [site.name for site in self.sites])
        values, places = cosines(products, _norms(own, self.sites), self.norms)[0].topk(min(count, len(self.names)))
        return tuple(zip([self.names[place] for place in places.tolist()], values.tolist(), strict=True))


def _at(lora: LoraWeights, sites: Sequence[LoraSite]) -> LoraWeights:
    """Returns the factors at some sites."""
    return LoraWeights({s.name: lora.a[s.name] for s in sites}, {s.name: lora.b[s.name] for s in sites}, lora.scale)


def _norms(lora: LoraWeights, sites: Sequence[LoraSite]) -> Tensor:
    """Returns the norm of each task's update over all `sites` [T]."""
    return update_norms(lora, sites).cpu().double().square().sum(1).sqrt()

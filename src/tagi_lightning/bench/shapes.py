"""Models and token rows of the benchmark: random weights and random tokens at the lengths of real tasks."""

from __future__ import annotations

import torch

from tagi_lightning.backbones import Backbone, build_backbone
from tagi_lightning.backbones.loading import t5_config
from tagi_lightning.data.batch import Tokens


def random_tokens(rows: int, length: int, vocabulary: int, seed: int) -> Tokens:
    """Returns full rows of random tokens [rows, length]."""
    ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, torch.ones_like(ids))


def backbone(size: str) -> Backbone:
    """Returns a T5 of a built-in size with random weights, frozen."""
    model = build_backbone(t5_config(size), size)
    model.freeze()
    return model.eval()

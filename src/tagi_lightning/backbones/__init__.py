"""Frozen language models behind one interface."""

from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.backbones.loading import SIZES, BackboneConfig, build_backbone, load_backbone

__all__ = ["SIZES", "Backbone", "BackboneConfig", "GenerationConfig", "build_backbone", "load_backbone"]

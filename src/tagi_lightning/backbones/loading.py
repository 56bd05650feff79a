"""Where backbones come from: a hub id, a Hugging Face folder, or a built-in size with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, T5Config

from tagi_lightning.backbones.base import Backbone
from tagi_lightning.backbones.t5 import T5Backbone
from tagi_lightning.backbones.t5_modules import ConditionedT5

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2},
    "small": {"d_model": 512, "d_kv": 64, "num_heads": 6, "d_ff": 1024, "num_layers": 8},
    "base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 12},
    "large": {"d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2816, "num_layers": 24},
    "xl": {"d_model": 2048, "d_kv": 64, "num_heads": 32, "d_ff": 5120, "num_layers": 24},
    "xxl": {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24},
}
"""Shapes of T5 v1.1 by size; `tiny` is ours. `google/t5-{size}-lm-adapt` are the paper's weights of the others."""

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen language model."""

    name: str = "tiny"
    """Hub id, Hugging Face folder, or a built-in size (tiny, small, ...) to build with fresh weights."""
    dtype: Dtype = "float32"
    """Type the frozen weights are stored in; trainable weights stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message says what was looked for and what to do."""


def t5_config(size: str, vocabulary_size: int = 32128) -> T5Config:
    """Returns the T5 v1.1 configuration of a built-in size: gated GELU, untied output, no dropout.

    Raises:
        BackboneError: If `size` is unknown.
    """
    if size not in SIZES:
        raise BackboneError(f"unknown size {size!r}; choose from {', '.join(SIZES)}")
    shape: dict[str, Any] = {"vocab_size": vocabulary_size, "decoder_start_token_id": 0, **SIZES[size]}
    return T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, **shape)  # type: ignore[call-arg]


def build_backbone(config: T5Config, name: str, seed: int = 0) -> T5Backbone:
    """Builds a T5 with fresh weights, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConditionedT5(config)
        model.initialize_from_scratch()
    return T5Backbone(model, name)


def load_backbone(config: BackboneConfig, vocabulary_size: int = 32128, seed: int = 0) -> Backbone:
    """Loads the backbone `config` names, frozen, without dropout and in evaluation mode.

    Args:
        config: What to load.
        vocabulary_size: Size of the vocabulary of a built-in size.
        seed: Draws the weights of a built-in size.

    Raises:
        BackboneError: If the name is neither a built-in size, a folder nor a reachable hub id, or the model is of a
            family that is not supported.
    """
    if config.name in SIZES:
        backbone = build_backbone(t5_config(config.name, vocabulary_size), config.name, seed)
        backbone.to(getattr(torch, config.dtype))
    else:
        backbone = _load_pretrained(config)
    backbone.freeze()
    if config.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Hugging Face checkpoints in training mode only; with dropout at 0 the mode changes nothing else
        backbone.train()
    else:
        backbone.eval()
    return backbone


def _load_pretrained(config: BackboneConfig) -> T5Backbone:
    looks_local = config.name.startswith((".", "/", "~")) or Path(config.name).is_dir() or config.name.count("/") > 1
    path = Path(config.name).expanduser()
    if looks_local and not (path / "config.json").is_file():
        raise BackboneError(
            f"no Hugging Face model at {config.name} (config.json is missing). "
            "Give a hub id, a model folder or a built-in size, or train one: make pretrain-backbone"
        )
    source = str(path) if looks_local else config.name
    try:
        hf_config = AutoConfig.from_pretrained(source)
        if hf_config.model_type != "t5":
            raise BackboneError(f"{config.name} is a {hf_config.model_type} model; supported: t5")
        hf_config.dropout_rate = 0.0
        model = ConditionedT5.from_pretrained(source, config=hf_config, dtype=getattr(torch, config.dtype))
    except OSError as error:
        raise BackboneError(
            f"cannot load backbone {config.name!r}: {error}\nGive a hub id that is reachable or cached, a model "
            f"folder, or a built-in size ({', '.join(SIZES)})."
        ) from error
    return T5Backbone(model, config.name)

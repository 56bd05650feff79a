"""Where backbones come from: a hub id, a Hugging Face folder, or a built-in size with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, T5Config

from tagi_lightning.backbones.base import Backbone
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.backbones.compilation import compile_forward, has_compiler
from tagi_lightning.backbones.pretrained import PACKAGES, locate
from tagi_lightning.backbones.quantization import quantize_linears
from tagi_lightning.backbones.t5 import T5Backbone
from tagi_lightning.backbones.t5_modules import ConditionedT5
from tagi_lightning.data.source import SourceError, find_source
from tagi_lightning.data.tokenizer import TokenizerError, read_tokenizer

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
    """Hub id, folder, `smollm2-135m` (make backbone), or a size (tiny, small, ...) to build with fresh weights."""
    dtype: Dtype = "float32"
    """Type the frozen weights are stored in; trainable weights stay float32. T5 overflows in float16."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """sdpa: PyTorch's fused attention; eager: plain products, which on CPUs train faster in bfloat16."""
    quantization: Literal["int8"] | None = None
    """int8: keep the frozen linear layers in 8 bits, with one scale an output channel; null: as `dtype` says. A way
    to store the same backbone, like `dtype`: what was trained on it fits it in every form."""
    instruction_layer: int | None = None
    """Decoder-only models: layer, from 1 on, whose output is the instruction's states; null: the last."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the teacher-forced forward pass of T5 by torch.compile, once for all lengths; needs a C++ compiler, and
    minutes at the start. Generation and the scoring of choices run as they are. Not with gradient checkpointing."""

    def __post_init__(self) -> None:
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "backbone.compile and backbone.gradient_checkpointing do not go together: torch.compile cannot trace "
                "checkpointed blocks that are given an adapter; choose one"
            )


SUPPORTED = (
    f"t5, and the decoder-only families {', '.join(FAMILIES)}, whose attention has q_proj, k_proj, v_proj and o_proj"
)

DECODER_ONLY_SIZES = (
    "take the settings for its kind: SIZE=smollm2-135m BACKBONE={name} with make, or --config "
    "experiments/sizes/smollm2-135m.yaml --config experiments/sizes/smollm2-135m/STAGE.yaml --backbone.name {name} "
    "instead of another size's files"
)
"""What to do where a decoder-only model is run with the settings of a T5."""

Model = TypeVar("Model", bound=PreTrainedModel)


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
        torch.default_generator.manual_seed(seed)  # the GPUs' random numbers are those of the run's seed
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
            family that is not supported or does not work in this type.
    """
    config = replace(config, name=locate(config.name))
    if config.name in SIZES:
        backbone: Backbone = build_backbone(t5_config(config.name, vocabulary_size), config.name, seed)
        backbone.to(getattr(torch, config.dtype))
    else:
        backbone = _load_pretrained(config)
    refuse_float16(backbone, config.dtype == "float16", "backbone.dtype=bfloat16")
    backbone.freeze()
    if config.quantization is not None:
        backbone.stored_digest = backbone.digest()
        quantize_linears(backbone.model)
    set_execution(backbone, config)
    backbone.eval()
    return backbone


def set_execution(backbone: Backbone, config: BackboneConfig) -> None:
    """Switches on gradient checkpointing and compilation where `config` asks for them; no weight changes its name.

    Raises:
        BackboneError: If the model is not one that compiles, or there is no C++ compiler for torch.compile.
    """
    backbone.model.set_attn_implementation(config.attention)
    if config.gradient_checkpointing:
        checkpoint_blocks(backbone.model)
    if config.compile:
        if isinstance(backbone, CausalBackbone):
            raise BackboneError(
                "backbone.compile is for T5: torch.compile (torch 2.13) stops with an error inside its compiler on "
                "decoder-only models whose batches differ in length; leave backbone.compile false"
            )
        if not has_compiler():
            raise BackboneError(
                "backbone.compile needs a C++ compiler (g++, clang++, or the one that CXX names); "
                "install one, or leave backbone.compile false"
            )
        compile_forward(backbone)


def refuse_float16(backbone: Backbone, is_half: bool, instead: str) -> None:
    """Refuses float16 for T5.

    Args:
        backbone: The model.
        is_half: Whether it is to run in float16.
        instead: What to say in its place.

    Raises:
        BackboneError: If it is a T5.
    """
    if is_half and backbone.model.config.model_type == "t5":
        raise BackboneError(
            f"{backbone.name} is a T5, whose feed-forward layers overflow in float16 and give infinite or NaN losses; "
            f"bfloat16 has the range of float32: {instead}"
        )


def find_backbone(name: str) -> str:
    """Returns the folder or hub id of a pretrained backbone after looking whether it is there.

    Raises:
        BackboneError: If it is not.
        FileNotFoundError: If it is a model of `PACKAGES` that has not been fetched yet.
    """
    try:
        return find_source(locate(name), ("config.json",))
    except SourceError as error:
        raise _unreachable(name, error) from error


def _load_pretrained(config: BackboneConfig) -> Backbone:
    source = find_backbone(config.name)
    try:
        hf_config = AutoConfig.from_pretrained(source)
    except OSError as error:
        raise _unreachable(config.name, error) from error
    except ValueError as error:  # a family that transformers does not know
        raise BackboneError(f"cannot load backbone {config.name!r}, supported: {SUPPORTED}\n{error}") from error
    if hf_config.model_type in FAMILIES:
        return _load_causal(config, source, hf_config)
    if hf_config.model_type != "t5":
        raise BackboneError(
            f"{config.name} is a {hf_config.model_type} model; supported: {SUPPORTED}; take one of these"
        )
    if config.instruction_layer is not None:
        raise BackboneError(f"backbone.instruction_layer is for decoder-only models; {config.name} is a T5")
    hf_config.dropout_rate = 0.0
    return T5Backbone(_load_weights(ConditionedT5, config, source, hf_config), config.name)


def _unreachable(name: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"cannot load backbone {name!r}: {error}\nGive a Hugging Face folder with config.json, weights and tokenizer, "
        f"a hub id that is reachable or cached, {', '.join(PACKAGES)} (make backbone), or a size "
        f"({', '.join(SIZES)}), which make pretrain-backbone trains from scratch. Supported: {SUPPORTED}."
    )


def _load_weights(family: type[Model], config: BackboneConfig, source: str, hf_config: PreTrainedConfig) -> Model:
    """Loads every weight of a model; Hugging Face would draw those that are not there, and only warn.

    Raises:
        BackboneError: If files are missing or damaged, or are not the weights of this configuration.
    """
    try:
        loaded: Any = family.from_pretrained(
            source,
            config=hf_config,
            dtype=getattr(torch, config.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
        )
    except OSError as error:
        raise _unreachable(config.name, error) from error
    except SafetensorError as error:
        raise BackboneError(f"the weights of {config.name} are damaged: {error}; get the model again") from error
    model: Model
    found: dict[str, Any]
    model, found = loaded
    problems = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    problems += [
        f"{name} is {tuple(there)}, not {tuple(here)}" for name, there, here in sorted(found["mismatched_keys"])
    ]
    if problems:
        raise BackboneError(
            f"{config.name} does not hold the weights that its config.json tells of: {problems[0]}"
            + (f", and {len(problems) - 1} more" if len(problems) > 1 else "")
            + "; get the whole model again, its output layer included"
        )
    return model


def _load_causal(config: BackboneConfig, source: str, hf_config: PreTrainedConfig) -> CausalBackbone:
    """Loads a decoder-only model; its tokenizer says whether sequences start with BOS.

    Raises:
        BackboneError: If the weights do not load, or there is no tokenizer with the model.
    """
    hf_config.attention_dropout = 0.0
    model = _load_weights(FAMILIES[hf_config.model_type], config, source, hf_config)
    try:
        tokenizer: Any = read_tokenizer(source)
    except TokenizerError as error:
        raise BackboneError(f"cannot load backbone {config.name!r}: {error}") from error
    bos_id = tokenizer.bos_token_id
    starts_with_bos = bos_id is not None and tokenizer("a").input_ids[:1] == [bos_id]
    return CausalBackbone(model, config.name, bos_id if starts_with_bos else None, config.instruction_layer)

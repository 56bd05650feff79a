"""Tiny random decoder-only models of every supported family."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": None,
}

CONFIGS = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mha": LlamaConfig(**SHAPE, num_key_value_heads=4, tie_word_embeddings=False),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=1, head_dim=16, sliding_window=6),
    "qwen2": Qwen2Config(
        **SHAPE, num_key_value_heads=2, use_sliding_window=True, max_window_layers=1, sliding_window=6
    ),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
}
"""Grouped and plain heads, tied and untied outputs, biases, norms, heads wider than d / H, sliding windows."""


def build_causal_family(family="llama", seed=0, **options):
    """Returns a frozen tiny model of `family` in evaluation mode; biases and norms are random, too."""
    config = copy.deepcopy(CONFIGS[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[config.model_type](config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    backbone = CausalBackbone(model, f"{family}-{seed}", **options)
    backbone.freeze()
    return backbone.eval()


@pytest.fixture(scope="session")
def build_causal():
    """The function `build_causal_family`, for tests that need a backbone of their own."""
    return build_causal_family


@pytest.fixture(scope="session", params=CONFIGS)
def any_causal(request):
    """One decoder-only backbone of each family; not to be changed."""
    return build_causal_family(request.param)


@pytest.fixture(scope="session")
def causal():
    """A Llama with grouped heads and tied embeddings; not to be changed."""
    return build_causal_family()


def copy_to_plain(backbone):
    """Returns transformers' own model with the backbone's weights."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(backbone.model.config))
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


@pytest.fixture(scope="session")
def plain_causal():
    """The function `copy_to_plain`."""
    return copy_to_plain

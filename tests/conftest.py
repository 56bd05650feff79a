"""Tiny random models and batches that the tests of the core share."""

import copy
import random

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tagi_lightning.backbones import build_backbone
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraConfig, LoraWeights
from tagi_lightning.model import TagiConfig, TagiModel

VOCABULARY = 64

FAMILIES = {
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 8},
    "narrow": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 4},
    "wide-tied": {"feed_forward_proj": "relu", "d_kv": 16},
}
"""The kinds of T5: d_model equal to, above and below heads x d_kv; gated or not; untied or tied."""


def build_family(family="v1.1", seed=0, **overrides):
    """Returns a frozen tiny T5 of `family` in evaluation mode."""
    settings = {"d_model": 32, "d_ff": 48, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0, **FAMILIES[family]}
    config = T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **(settings | overrides))
    backbone = build_backbone(config, f"{family}-{seed}", seed)
    backbone.freeze()
    return backbone.eval()


@pytest.fixture(scope="session")
def build():
    """The function `build_family`, for tests that need a backbone of their own."""
    return build_family


@pytest.fixture(scope="session", params=FAMILIES)
def any_backbone(request):
    """One backbone of each family; not to be changed."""
    return build_family(request.param)


@pytest.fixture(scope="session")
def backbone():
    """A backbone with d_model unequal to heads x d_kv; not to be changed."""
    return build_family("narrow")


def draw_tokens(lengths, seed=0):
    """Returns random rows of `lengths` tokens, each ending with EOS, right-padded."""
    draw = random.Random(f"{seed}/{lengths}")
    rows = [[*(draw.randrange(3, VOCABULARY) for _ in range(length - 1)), 1] for length in lengths]
    return Tokens.pad(rows, pad_id=0)


@pytest.fixture(scope="session")
def tokens():
    """The function `draw_tokens`."""
    return draw_tokens


def draw_lora(backbone, num_tasks, config=None, seed=0, size=0.3):
    """Returns random adapters of `num_tasks` tasks, whose updates are as large as the backbone's weights."""
    config = config or LoraConfig(rank=4)
    draw = torch.Generator().manual_seed(seed)
    sites = backbone.sites(config)
    return LoraWeights(
        {s.name: size * torch.randn(num_tasks, config.rank, s.in_features, generator=draw) for s in sites},
        {s.name: size * torch.randn(num_tasks, s.out_features, config.rank, generator=draw) for s in sites},
        config.scale,
    )


@pytest.fixture(scope="session")
def lora():
    """The function `draw_lora`."""
    return draw_lora


def merge_lora(backbone, weights, task):
    """Returns a copy of `backbone` with the update of `task` added to its weights."""
    merged = copy.deepcopy(backbone)
    with torch.no_grad():
        for site in weights.a:
            merged.model.get_submodule(site).weight += weights.delta(site)[task]
    return merged


@pytest.fixture(scope="session")
def merge():
    """The function `merge_lora`."""
    return merge_lora


def copy_to_transformers(backbone):
    """Returns transformers' own T5 with the backbone's weights."""
    model = T5ForConditionalGeneration(copy.deepcopy(backbone.model.config))
    # the configuration class ties every T5; an output layer of its own makes room for untied weights
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


@pytest.fixture(scope="session")
def plain_t5():
    """The function `copy_to_transformers`."""
    return copy_to_transformers


def build_trained(backbone, config=None, seed=0):
    """Returns a model whose trained weights are moved away from their start, as if it had been trained.

    The move is large enough to change every answer, and small enough that float32 stays well-conditioned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TagiModel(backbone, config or TagiConfig(lora=LoraConfig(rank=4)))
        with torch.no_grad():
            for parameter in model.trained_parameters().values():
                parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="session")
def trained():
    """The function `build_trained`."""
    return build_trained


def relative_distance(found, expected):
    """Returns the largest difference of two tensors relative to the largest entry of `expected`."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="session")
def distance():
    """The function `relative_distance`."""
    return relative_distance


@pytest.fixture(scope="module")
def states():
    """Instruction states of three tasks [3, 6, 32]."""
    return torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask():
    """Which of their tokens are no padding [3, 6]."""
    return (torch.arange(6) < torch.tensor([[6], [2], [4]])).long()

import pytest
import torch

from tagi_lightning.caches.adapters import AdapterCache
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig


@pytest.fixture
def model(build, trained):
    return trained(build("v1.1"), TagiConfig(LoraConfig(rank=4)))


@pytest.fixture
def instructions(tokens):
    """Four instructions of different lengths."""
    return tokens([5, 9, 3, 7])


def rows(tokens, *places):
    return tokens.map(lambda tensor: tensor[list(places)])


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0), (3, 3, 1), (1,)])
def test_found_and_fresh_adapters_answer_alike(model, instructions, tokens, order, distance):
    cache = AdapterCache(model)
    cache(rows(instructions, 0, 2))
    inputs, labels = tokens([4] * len(order)), tokens([3] * len(order), seed=1).ids
    index = torch.arange(len(order))
    fresh = model(inputs, labels, model.adapt(rows(instructions, *order)), index)
    found = model(inputs, labels, cache(rows(instructions, *order)), index)
    # float32; the instructions are padded to another length
    assert distance(found, fresh) < 1e-5


def test_an_instruction_is_prepared_once(model, instructions):
    cache = AdapterCache(model)
    cache(rows(instructions, 0, 1, 0))
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 2)
    cache(instructions)
    assert (cache.hits, cache.misses, len(cache)) == (2, 5, 4)


def test_padding_does_not_tell_instructions_apart(model, instructions):
    cache = AdapterCache(model)
    cache(instructions)
    alone = rows(instructions, 2).map(lambda tensor: tensor[:, :3])
    cache(alone)
    assert cache.hits == 1


def test_what_was_not_asked_for_the_longest_leaves_first(model, instructions):
    size = [AdapterCache(model)(rows(instructions, place)).num_bytes for place in range(4)]
    cache = AdapterCache(model, max_bytes=size[0] + size[1] + size[2])
    for place in (0, 1, 2, 0, 3):
        cache(rows(instructions, place))
        assert cache.num_bytes <= cache.max_bytes
    before = cache.misses
    cache(rows(instructions, 0))
    assert cache.misses == before
    cache(rows(instructions, 1))
    assert cache.misses == before + 1


def test_an_adapter_larger_than_the_cache_is_made_and_not_kept(model, instructions):
    cache = AdapterCache(model, max_bytes=0)
    assert cache(instructions).num_tasks == 4
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_training_the_model_makes_earlier_adapters_unfindable(model, instructions):
    cache = AdapterCache(model)
    first = cache(instructions)
    with torch.no_grad():
        next(model.hypernetwork.parameters()).add_(0.1)
    second = cache(instructions)
    assert cache.hits == 0
    assert first.model_digest != second.model_digest


def test_types_are_kept_apart(model, instructions):
    cache = AdapterCache(model, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in cache(instructions).lora.a.values()} == {torch.bfloat16}


def test_a_negative_size_is_refused(model):
    with pytest.raises(ValueError, match="max_bytes"):
        AdapterCache(model, max_bytes=-1)

import copy

import pytest
import torch

from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel

LENGTHS = [5, 9, 3]


@pytest.fixture
def model(any_backbone):
    return TagiModel(any_backbone, TagiConfig(lora=LoraConfig(rank=4)))


@pytest.fixture
def counted(model, monkeypatch):
    """The number of tokens of every reading of the backbone."""
    read, calls = model.encode_instructions, []

    def encode(tokens, memory):
        calls.append(tokens.ids.numel())
        return read(tokens, memory)

    monkeypatch.setattr(model, "encode_instructions", encode)
    return calls


def test_cached_states_are_those_of_the_padded_batch_up_to_rounding_and_zero_at_padding(model, tokens, distance):
    instruction = tokens(LENGTHS)
    found = InstructionStatesCache(model, 2**20).encode(instruction)
    fresh = model.encode_instructions(instruction)
    assert torch.equal(found.mask, fresh.mask)
    assert distance(found.states * found.mask[..., None], fresh.states * fresh.mask[..., None]) < 1e-5
    assert found.states[found.mask == 0].abs().max() == 0
    assert not found.states.requires_grad


def test_an_adapter_from_cached_states_is_the_one_from_tokens(trained, any_backbone, tokens, distance):
    model, instruction = trained(any_backbone), tokens(LENGTHS)
    fresh = model.adapt(instruction)
    cached = model.adapt(InstructionStatesCache(model, 2**20).encode(instruction))
    for site, a in fresh.lora.a.items():
        assert distance(cached.lora.a[site], a) < 1e-5
        assert distance(cached.lora.b[site], fresh.lora.b[site]) < 1e-5


def test_each_instruction_is_read_once_and_alone(model, counted, tokens):
    cache, instruction = InstructionStatesCache(model, 2**20), tokens(LENGTHS)
    first = cache.encode(instruction)
    assert counted == LENGTHS
    second = cache.encode(instruction.map(lambda rows: rows[[2, 0]]))
    assert counted == LENGTHS
    assert torch.equal(second.states[0, :3], first.states[2, :3])
    assert torch.equal(second.states[1, :5], first.states[0, :5])


def test_states_do_not_depend_on_the_batch_they_are_first_seen_in(model, tokens):
    instruction = tokens(LENGTHS)
    together = InstructionStatesCache(model, 2**20).encode(instruction)
    alone = InstructionStatesCache(model, 2**20).encode(instruction.map(lambda rows: rows[2:]))
    assert torch.equal(together.states[2, :3], alone.states[0, :3])


def test_memory_stays_within_its_bound_and_the_oldest_is_forgotten(model, counted, tokens):
    instruction = tokens([4, 4, 4])
    cache = InstructionStatesCache(model, 2**20)
    cache.encode(instruction.map(lambda rows: rows[:1]))
    cache.max_bytes = 2 * cache.num_bytes
    cache.encode(instruction)
    assert len(cache) == 2
    assert cache.num_bytes == cache.max_bytes
    counted.clear()
    cache.encode(instruction.map(lambda rows: rows[1:]))
    assert counted == []
    cache.encode(instruction.map(lambda rows: rows[:1]))
    assert counted == [4]


def test_a_batch_larger_than_the_bound_is_still_whole(model, tokens):
    cache = InstructionStatesCache(model, 1)
    assert len(cache.encode(tokens(LENGTHS)).states) == 3
    assert len(cache) == 0
    assert cache.num_bytes == 0


def test_a_backbone_that_trains_is_refused(backbone):
    thawed = copy.deepcopy(backbone)
    thawed.requires_grad_(True)
    with pytest.raises(ValueError, match="instruction_cache_mb=0"):
        InstructionStatesCache(TagiModel(thawed, TagiConfig(lora=LoraConfig(rank=4))), 2**20)

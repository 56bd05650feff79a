import copy
import threading

import pytest
import torch

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.merging import WeightsLock
from tagi_lightning.model import TagiConfig, TagiModel

ONE_TASK = torch.zeros(3, dtype=torch.long)


@pytest.fixture
def model(build, trained):
    return trained(build("v1.1"), TagiConfig(LoraConfig(rank=4, targets=("q", "k", "v", "o"))))


@pytest.fixture
def prepared(model, tokens):
    return model.prepare(tokens([6]))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}


@torch.no_grad()
def test_merged_and_unmerged_answer_alike(model, prepared, tokens, distance):
    inputs, labels = tokens([4, 7, 5]), tokens([3, 5, 2], seed=1).ids
    config = GenerationConfig(max_new_tokens=6)
    expected = model(inputs, labels, prepared, ONE_TASK)
    answers = model.generate(inputs, prepared, ONE_TASK, config)
    with model.merged(prepared) as rest:
        assert rest.lora is None
        # float32: one product with W + BA instead of two
        assert distance(model(inputs, labels, rest, ONE_TASK), expected) < 1e-5
        assert torch.equal(model.generate(inputs, rest, ONE_TASK, config), answers)


@torch.no_grad()
def test_the_original_weights_come_back_bit_for_bit_also_after_an_error(model, prepared):
    before, digest = weights(model), model.digest()

    def changed():
        return [name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])]

    def fail():
        with model.merged(prepared):
            assert len(changed()) == len(model.sites)
            raise KeyError("on the way")

    with pytest.raises(KeyError, match="on the way"):
        fail()
    assert changed() == []
    assert model.digest() == digest


@pytest.mark.parametrize("asks_for", ["logits", "adapter"])
def test_other_threads_wait_until_the_weights_are_back(model, prepared, tokens, asks_for):
    inputs, labels, instruction = tokens([4]), tokens([3], seed=1).ids, tokens([5], seed=2)
    nothing = torch.zeros(1, dtype=torch.long)
    found, started = [], threading.Event()

    @torch.no_grad()
    def answer():
        if asks_for == "logits":
            return model(inputs, labels, prepared, nothing)
        return model(inputs, labels, model.prepare(instruction), nothing)

    expected = answer()

    def ask():
        started.set()
        found.append(answer())

    thread = threading.Thread(target=ask)
    with model.merged(prepared):
        thread.start()
        started.wait()
        thread.join(0.2)
        assert found == []
    thread.join()
    assert torch.equal(found[0], expected)


def test_adapters_of_several_tasks_cannot_be_merged(model, tokens):
    with pytest.raises(ValueError, match="one task"), model.merged(model.prepare(tokens([6, 4]))):
        pass


def test_a_cache_of_other_weights_is_not_merged(model, prepared):
    with torch.no_grad():
        next(model.hypernetwork.parameters()).add_(1)
    with pytest.raises(ValueError, match="other weights"):
        model.merged(prepared)


@torch.no_grad()
def test_weights_in_bfloat16_are_not_rounded_by_a_merge(model, tokens):
    model.backbone.bfloat16()
    before = weights(model)
    adapter = model.prepare(tokens([6]))
    with model.merged(adapter) as rest:
        assert rest is adapter
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_model_without_lora_has_nothing_to_merge(model, tokens, trained):
    bare = TagiModel(model.backbone, TagiConfig(hypernetwork=type(model.config.hypernetwork)(enabled=False)))
    adapter = bare.eval().prepare(tokens([6]))
    with bare.merged(adapter) as rest:
        assert rest is adapter


def test_a_copied_model_has_a_lock_of_its_own(model):
    other = copy.deepcopy(model)
    assert isinstance(other.backbone.lock, WeightsLock)
    assert other.backbone.lock is not model.backbone.lock

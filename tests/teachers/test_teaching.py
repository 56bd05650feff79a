"""A bank that learns many categories together against separate trainings of each, ours and PEFT's."""

import math

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.lora import LoraBank, LoraConfig, initial_a
from tagi_lightning.teachers.bank_optimizer import BankAdamW
from tagi_lightning.teachers.teaching import AdapterSelection, count_steps, teacher_losses

CONFIG = LoraConfig(rank=4)
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}
MAX_NORM = 0.5
STEPS = [
    [[(0, 3), (1, 1), (2, 2)]],
    [[(0, 1), (2, 1)], [(2, 4)]],
    [[(1, 2), (1, 1), (0, 2)], [(0, 3)]],
    [[(2, 2)]],
    [[(0, 2), (1, 2), (2, 2)], [(1, 2)]],
]
"""Batches of each optimizer step, as (category, examples) of each task."""


@pytest.fixture(scope="module")
def trunk(build):
    """A tiny T5 v1.1; not to be changed."""
    return build("v1.1")


def draw_batch(tokens, groups, seed):
    """Returns prompts, labels, categories [T] and task index [B] of one batch."""
    index = torch.arange(len(groups)).repeat_interleave(torch.tensor([count for _, count in groups]))
    prompt = tokens([4 + (7 * place + seed) % 6 for place in range(len(index))], seed=seed)
    targets = tokens([2 + (place + seed) % 3 for place in range(len(index))], seed=seed + 1000)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    return prompt, labels, torch.tensor([category for category, _ in groups]), index


def draw_steps(tokens):
    return [
        [draw_batch(tokens, groups, seed=10 * step + place) for place, groups in enumerate(batches)]
        for step, batches in enumerate(STEPS)
    ]


def train_together(backbone, tokens):
    bank = LoraBank(backbone.sites(CONFIG), CONFIG, ["a", "b", "c"])
    optimizer = BankAdamW(bank.parameters(), **SETTINGS)
    clipped = []
    for batches in draw_steps(tokens):
        optimizer.zero_grad()
        for prompt, labels, category, index in batches:
            teacher_losses(backbone, bank, prompt, labels, category, index).sum().backward()
            optimizer.count(category[index])
        clipped.append(optimizer.average_and_clip(MAX_NORM) > MAX_NORM)
        optimizer.step()
    assert any(step.any() for step in clipped)
    weights = bank()
    return [
        {site: (weights.a[site][adapter].detach(), weights.b[site][adapter].detach()) for site in weights.a}
        for adapter in range(3)
    ]


def own_examples(batches, adapter):
    """Yields prompt and labels of an adapter's examples, a step's batches one after another, without padding."""
    for prompt, labels, category, index in batches:
        for row in (category[index] == adapter).nonzero().flatten().tolist():
            length, targets = int(prompt.mask[row].sum()), int((labels[row] != IGNORE_INDEX).sum())
            tokens = Tokens(prompt.ids[row : row + 1, :length], prompt.mask[row : row + 1, :length])
            yield tokens, labels[row : row + 1, :targets]


def train_alone(tokens, adapter, parameters, loss):
    """Trains on one adapter's examples as anyone would: AdamW over the mean loss of each step that has any."""
    optimizer = torch.optim.AdamW(parameters, **SETTINGS)
    for batches in draw_steps(tokens):
        examples = list(own_examples(batches, adapter))
        if not examples:
            continue
        optimizer.zero_grad()
        torch.stack([loss(prompt, labels) for prompt, labels in examples]).mean().backward()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()


def difference(backbone, found, expected):
    """Returns the norm of the difference of two adapters, relative to how far the expected one moved from its start."""
    starts = {site.name: initial_a(site, CONFIG) for site in backbone.sites(CONFIG)}
    assert found.keys() == expected.keys() == starts.keys()
    moved = torch.cat([(pair[0] - starts[site]).flatten() for site, pair in expected.items()])
    moved = torch.cat([moved, *(pair[1].flatten() for pair in expected.values())])
    assert moved.abs().mean() > SETTINGS["lr"]
    apart = [(one - other).flatten() for site in starts for one, other in zip(found[site], expected[site], strict=True)]
    return (torch.cat(apart).norm() / moved.norm()).item()


def test_a_bank_equals_banks_of_one_adapter_trained_in_turn(trunk, tokens):
    together = train_together(trunk, tokens)
    for adapter in range(3):
        bank = LoraBank(trunk.sites(CONFIG), CONFIG, ["alone"])
        zero = torch.zeros(1, dtype=torch.long)

        def loss(prompt, labels, bank=bank, zero=zero):
            return teacher_losses(trunk, bank, prompt, labels, zero, zero)[0]

        train_alone(tokens, adapter, list(bank.parameters()), loss)
        weights = bank()
        alone = {site: (weights.a[site][0].detach(), weights.b[site][0].detach()) for site in weights.a}
        assert difference(trunk, together[adapter], alone) < 1e-4


def test_a_bank_equals_peft_runs_on_the_plain_model(trunk, tokens, plain_t5):
    together = train_together(trunk, tokens)
    for adapter in range(3):
        settings = peft.LoraConfig(
            r=CONFIG.rank, lora_alpha=CONFIG.scale * CONFIG.rank, target_modules=["q", "v"], lora_dropout=0.0
        )
        model = peft.get_peft_model(plain_t5(trunk), settings)
        sites = {site.name: model.base_model.model.get_submodule(site.name) for site in trunk.sites(CONFIG)}
        with torch.no_grad():
            for site in trunk.sites(CONFIG):
                sites[site.name].lora_A["default"].weight.copy_(initial_a(site, CONFIG))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def loss(prompt, labels, model=model):
            return model(input_ids=prompt.ids, attention_mask=prompt.mask, labels=labels).loss

        train_alone(tokens, adapter, trained, loss)
        alone = {
            name: (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())
            for name, layer in sites.items()
        }
        assert difference(trunk, together[adapter], alone) < 1e-4


WIDE = LoraConfig(rank=11)
"""A rank that no other dimension equals."""


class Elements(TorchDispatchMode):
    """Adds up the elements of every new tensor that an operation returned, and records its shape."""

    def __init__(self):
        super().__init__()
        self.total, self.shapes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and id(leaf) not in given:
                    self.total += leaf.numel()
                    self.shapes.add(tuple(leaf.shape))
        return result


def measure_step(backbone, tokens, adapters, groups):
    """Returns what one training step of a bank allocates, what it keeps for backward, and the bank's own size."""
    bank = LoraBank(backbone.sites(WIDE), WIDE, [str(number) for number in range(adapters)])
    optimizer = BankAdamW(bank.parameters(), lr=1e-3)
    prompt, labels, category, index = draw_batch(tokens, groups, seed=0)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with Elements() as elements:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = teacher_losses(backbone, bank, prompt, labels, category, index)
        losses.sum().backward()
        optimizer.count(category[index])
        optimizer.average_and_clip(1.0)
        optimizer.step()
    return elements, sum(saved.values()), sum(parameter.numel() for parameter in bank.parameters())


@pytest.mark.parametrize("groups", [[(0, 2), (1, 2), (2, 2), (3, 2)], [(3, 1), (0, 3), (1, 2)]])
def test_a_step_needs_no_more_memory_for_more_adapters_than_their_own_gradient(trunk, tokens, groups):
    few, few_saved, few_size = measure_step(trunk, tokens, 8, groups)
    many, many_saved, many_size = measure_step(trunk, tokens, 64, groups)
    assert many_saved == few_saved
    # the gradient of the whole bank, once, and a few numbers an adapter
    assert many.total - few.total <= (many_size - few_size) + 100 * 64
    width, examples = trunk.width, sum(count for _, count in groups)
    assert not [shape for shape in many.shapes if len(shape) > 2 and shape[-2:] == (width, width)]  # [B, d, d]
    assert not [shape for shape in many.shapes if len(shape) == 4 and shape[0] == examples and WIDE.rank in shape]


def test_an_adapters_steps_are_the_windows_that_hold_it():
    batches = [{0, 1}, {0}, {2}, {0}, {0, 2}]
    assert count_steps(batches, 4, accumulate=1, steps=10) == [8, 2, 4, 1]
    assert count_steps(batches, 4, accumulate=2, steps=6) == [6, 2, 4, 1]


@pytest.fixture
def bank(trunk):
    return LoraBank(trunk.sites(CONFIG), CONFIG, ["a", "b", "c"])


def fill(bank, value):
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.fill_(value)


def validate(selection, *means, moved=(1, 1, 1)):
    examples = torch.tensor([0 if mean is None else 4 for mean in means])
    steps = selection.steps + torch.tensor(moved)
    selection.update(torch.tensor([4.0 * (mean or 0.0) for mean in means]), examples, steps)


def rows(bank):
    """Returns the one value that fills each adapter."""
    values = [{parameter[adapter].unique().item() for parameter in bank.parameters()} for adapter in range(3)]
    assert all(len(value) == 1 for value in values)
    return [value.pop() for value in values]


def test_an_adapter_stops_at_its_best_weights_while_the_others_go_on(bank):
    selection = AdapterSelection(bank, patience=2)
    for value, means in enumerate([(3.0, 1.0, None), (2.0, 1.5, None), (1.0, 1.2, None)], start=1):
        fill(bank, float(value))
        validate(selection, *means)
    assert selection.stopped.tolist() == [False, True, False]
    assert rows(bank) == [3.0, 1.0, 3.0]
    for value, means in enumerate([(1.5, 0.1, None), (float("nan"), 0.1, None)], start=4):
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter[[0, 2]] = float(value)
        validate(selection, *means)
    assert selection.stopped.tolist() == [True, True, False]
    # the third was never validated: its last weights are what there is
    assert rows(bank) == rows(selection.selected()) == [3.0, 1.0, 5.0]
    assert selection.best.tolist() == [1.0, 1.0, math.inf]


def test_a_validation_counts_for_those_that_moved_since_the_last(bank):
    selection = AdapterSelection(bank, patience=1)
    fill(bank, 1.0)
    validate(selection, 1.0, 1.0, 1.0, moved=(1, 1, 0))
    fill(bank, 2.0)
    validate(selection, 1.0, 1.0, 3.0, moved=(0, 1, 1))
    assert selection.stopped.tolist() == [False, True, False]
    assert selection.best.tolist() == [1.0, 1.0, 3.0]
    assert rows(selection.selected()) == [1.0, 1.0, 2.0]


def test_without_patience_none_stops_and_the_best_weights_are_kept_beside_the_last(bank):
    selection = AdapterSelection(bank, patience=None)
    for value, mean in enumerate([2.0, 1.0, 3.0, 4.0, 5.0], start=1):
        fill(bank, float(value))
        validate(selection, mean, 5.0 - value, None)
    assert not selection.stopped.any()
    assert rows(bank) == [5.0, 5.0, 5.0]
    assert rows(selection.selected()) == [2.0, 5.0, 5.0]


def test_a_selection_goes_on_from_its_state(bank):
    whole, first = AdapterSelection(bank, patience=2), AdapterSelection(bank, patience=2)
    for selection in (whole, first):
        fill(bank, 1.0)
        validate(selection, 1.0, 2.0, 3.0)
    resumed = AdapterSelection(bank, patience=2)
    resumed.load_state_dict(first.state_dict())
    for selection in (whole, resumed):
        for value, means in enumerate([(1.5, 1.0, 2.0), (1.6, 0.5, 1.0)], start=2):
            fill(bank, float(value))
            validate(selection, *means)
        assert selection.stopped.tolist() == [True, False, False]
        assert rows(selection.selected()) == [1.0, 3.0, 3.0]


def test_a_bank_that_was_never_validated_is_the_selected_one(bank):
    assert AdapterSelection(bank, patience=1).selected() is bank


def test_patience_below_one_is_refused(bank):
    with pytest.raises(ValueError, match="patience must be at least 1"):
        AdapterSelection(bank, patience=0)

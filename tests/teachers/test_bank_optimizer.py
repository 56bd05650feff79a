import math

import pytest
import torch
from torch import nn

from tagi_lightning.teachers.bank_optimizer import BankAdamW

ADAPTERS, STEPS = 3, 6
SHAPES = ((2, 4, 5), (3, 2))
SETTINGS = {"lr": 0.05, "weight_decay": 0.1}
SCHEDULES = [lambda step, slope=slope: 1 / (1 + slope * step) for slope in (0.0, 0.5, 2.0)]
COUNTS = torch.tensor([[1, 2, 0], [4, 0, 0], [0, 1, 3], [2, 2, 2], [1, 0, 5], [3, 1, 1]])
"""Examples of each adapter in each step; some are absent from some steps."""


def draw(step):
    """Returns mean gradients of every adapter in one step, of very different sizes."""
    generator = torch.Generator().manual_seed(step)
    sizes = torch.tensor([0.01, 1.0, 100.0])
    return [torch.randn(ADAPTERS, *shape, generator=generator) * sizes.view(-1, *[1] * len(shape)) for shape in SHAPES]


def start():
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(ADAPTERS, *shape, generator=generator) for shape in SHAPES]


def build(**options):
    parameters = [nn.Parameter(tensor) for tensor in start()]
    return parameters, BankAdamW(parameters, **(SETTINGS | options))


def backward(parameters, optimizer, gradients, counts):
    """Does what a backward pass of the summed loss does, and counts its examples."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        summed = gradient * counts.view(-1, *[1] * (gradient.dim() - 1))
        parameter.grad = summed if parameter.grad is None else parameter.grad + summed
    optimizer.count(torch.arange(ADAPTERS).repeat_interleave(counts))


def train(parameters, optimizer, steps, max_norm=1.0):
    for step in steps:
        optimizer.zero_grad()
        backward(parameters, optimizer, draw(step), COUNTS[step])
        optimizer.average_and_clip(max_norm)
        optimizer.step()


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_each_adapter_moves_as_under_an_adamw_of_its_own(max_norm):
    parameters, optimizer = build(schedules=SCHEDULES)
    train(parameters, optimizer, range(STEPS), max_norm)
    for adapter in range(ADAPTERS):
        own = [nn.Parameter(tensor[adapter]) for tensor in start()]
        adamw = torch.optim.AdamW(own, **SETTINGS)
        schedule = torch.optim.lr_scheduler.LambdaLR(adamw, SCHEDULES[adapter])
        for step in range(STEPS):
            if not COUNTS[step, adapter]:
                continue
            for parameter, gradient in zip(own, draw(step), strict=True):
                parameter.grad = gradient[adapter].clone()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(own, max_norm)
            adamw.step()
            schedule.step()
        for found, expected in zip(parameters, own, strict=True):
            torch.testing.assert_close(found[adapter], expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_without_examples_stays_bit_for_bit_with_its_state():
    parameters, optimizer = build()
    train(parameters, optimizer, [3])
    before = [parameter[1].clone() for parameter in parameters]
    states = [{name: value[1].clone() for name, value in optimizer.state[each].items()} for each in parameters]
    train(parameters, optimizer, [1, 4])
    assert all(torch.equal(parameter[1], kept) for parameter, kept in zip(parameters, before, strict=True))
    for parameter, kept in zip(parameters, states, strict=True):
        assert all(torch.equal(optimizer.state[parameter][name][1], value) for name, value in kept.items())
    assert optimizer.state[parameters[0]]["step"].tolist() == [3, 1, 2]


def test_norms_are_those_of_each_adapters_mean_gradient_and_clipping_bounds_each():
    parameters, optimizer = build()
    backward(parameters, optimizer, draw(4), COUNTS[4])
    norms = optimizer.average_and_clip(max_norm=1.0)
    for adapter, count in enumerate(COUNTS[4].tolist()):
        mean = torch.cat([gradient[adapter].flatten() for gradient in draw(4)])
        assert norms[adapter].item() == pytest.approx(mean.norm().item() if count else 0.0, rel=1e-5)
        if count:
            clipped = torch.cat([parameter.grad[adapter].flatten() for parameter in parameters])
            assert clipped.norm().item() == pytest.approx(min(1.0, mean.norm().item()), rel=1e-4)
            torch.testing.assert_close(clipped / clipped.norm(), mean / mean.norm())


def test_the_mean_is_over_all_examples_of_a_step_however_they_are_split():
    counts, parts = torch.tensor([3, 1, 4]), (torch.tensor([1, 0, 4]), torch.tensor([2, 1, 0]))
    whole, whole_optimizer = build()
    backward(whole, whole_optimizer, draw(0), counts)
    split, split_optimizer = build()
    for part in parts:  # Lightning divides the loss by the number of batches
        backward(split, split_optimizer, [gradient / len(parts) for gradient in draw(0)], part)
    for parameters, optimizer, scale in ((whole, whole_optimizer, 1), (split, split_optimizer, len(parts))):
        optimizer.average_and_clip(None, scale)
        for parameter, mean in zip(parameters, draw(0), strict=True):
            torch.testing.assert_close(parameter.grad, mean)


def test_zero_grad_forgets_the_examples_with_the_gradient():
    parameters, optimizer = build()
    backward(parameters, optimizer, draw(0), torch.tensor([1, 1, 1]))
    optimizer.zero_grad()
    assert not optimizer.examples.any()
    backward(parameters, optimizer, draw(1), torch.tensor([0, 2, 0]))
    optimizer.average_and_clip()
    optimizer.step()
    for parameter, begun in zip(parameters, start(), strict=True):
        assert [torch.equal(parameter[adapter], begun[adapter]) for adapter in range(ADAPTERS)] == [True, False, True]


def test_a_loaded_state_goes_on_with_the_same_bits():
    straight, optimizer = build(schedules=SCHEDULES)
    train(straight, optimizer, range(STEPS))
    parameters, first = build(schedules=SCHEDULES)
    train(parameters, first, range(3))
    second = BankAdamW(parameters, **SETTINGS, schedules=SCHEDULES)
    second.load_state_dict(first.state_dict())
    train(parameters, second, range(3, STEPS))
    assert all(torch.equal(found, expected) for found, expected in zip(parameters, straight, strict=True))


def test_a_closure_computes_gradients_and_the_groups_rate_is_the_mean_over_the_moved():
    parameters, optimizer = build(schedules=SCHEDULES)
    for _ in range(2):

        def closure():
            optimizer.zero_grad()
            loss = sum(parameter[[0, 2]].square().sum() for parameter in parameters)
            loss.backward()
            optimizer.count(torch.tensor([0, 2]))
            return loss.item()

        assert math.isfinite(optimizer.step(closure))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(SETTINGS["lr"] * (1 + 1 / 3) / 2)

import pytest
import torch
from torch import nn
from transformers import Adafactor

from tagi_lightning.stages import OptimizerConfig


def test_names_build_what_they_say_with_their_settings():
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    adamw = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.2).build(parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.1, 0.2)
    adafactor = OptimizerConfig(name="adafactor", lr=0.1).build(parameters)
    assert isinstance(adafactor, Adafactor)
    assert (adafactor.defaults["relative_step"], adafactor.defaults["scale_parameter"]) == (False, False)


@pytest.mark.parametrize("wrong", [{"lr": -1e-4}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"warmup": 1.5}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^optimizer.{next(iter(wrong))} must be at least 0"):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_weight_that_starts_at_zero_moves_at_once(name):
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = OptimizerConfig(name=name, lr=1e-3).build([weight])
    (weight.sum()).backward()
    optimizer.step()
    assert weight.abs().min() > 5e-4

"""Instruction states are measured once, where a hypernetwork that standardises them starts fresh."""

import pytest
import torch
from commands import command, copy_stages, same_tensors, tagi, weights

STATES = ("hypernetwork.states_mean", "hypernetwork.states_std")
OPTIONS = [f"--model.init_args.tagi.hypernetwork.{option}" for option in ("standardize=true", "generator=attention")]


@pytest.fixture(scope="module")
def pretrained(chain, task_set, tmp_path_factory):
    run = tmp_path_factory.mktemp("standardize")
    copy_stages(chain, run, "pretrain-backbone", "teachers")
    assert tagi(command("pretrain", run, task_set, "--trainer.max_steps=1", *OPTIONS)) == 0
    return run


def test_pretraining_measures_its_texts_and_distillation_keeps_what_they_gave(pretrained, task_set):
    texts = weights(pretrained, "pretrain")
    assert texts[STATES[0]].abs().max() > 0
    assert not torch.allclose(texts[STATES[1]], torch.ones(()))
    fresh = "--trainer.max_steps=1", "--model.init_args.init_from=auto"
    assert tagi(command("distill", pretrained, task_set, *fresh, *OPTIONS)) == 0
    distilled = weights(pretrained, "distill")
    assert same_tensors({name: texts[name] for name in STATES}, {name: distilled[name] for name in STATES})


def test_distillation_from_fresh_weights_measures_the_training_instructions(pretrained, task_set, tmp_path):
    copy_stages(pretrained, tmp_path / "run", "pretrain-backbone", "teachers")
    options = ["--trainer.max_steps=1", "--model.init_args.init_from=none", *OPTIONS]
    assert tagi(command("distill", tmp_path / "run", task_set, *options)) == 0
    found, texts = weights(tmp_path / "run", "distill"), weights(pretrained, "pretrain")
    assert found[STATES[0]].abs().max() > 0
    assert not torch.equal(found[STATES[0]], texts[STATES[0]])

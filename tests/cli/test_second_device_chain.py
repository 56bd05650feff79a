"""The chain as Lightning runs it on another device than the CPU, on one that needs no hardware (second_device.py).

Lightning builds a module on the device, moves it there and back, and calls its hooks before and after: nothing of that
shows on the CPU.
"""

import json

import pytest
import torch
from commands import STAGES, STEPS, command, copy_stages, record_of, same_tensors, tagi, weights
from second_device import second_device

from tagi_lightning.stages.base import Stage

THERE = ("--trainer.accelerator=second", "--trainer.strategy=second", "--trainer.log_every_n_steps=1")
VALIDATED = [
    "--data.init_args.val_split=instances",
    "--data.init_args.val_share=0.2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=null",
]
EVALUATED = ("tagi", "mean_adapter", "nearest_teacher")


@pytest.fixture(autouse=True)
def second():
    with second_device() as device:
        yield device


@pytest.fixture
def run(chain, tmp_path):
    """A run folder with everything before the distillation."""
    copy_stages(chain, tmp_path / "run", *STAGES[:-1])
    return tmp_path / "run"


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_a_stage_trains_there_to_the_weights_of_the_cpu(chain, task_set, tmp_path, stage):
    copy_stages(chain, tmp_path, *STAGES[: STAGES.index(stage)])
    assert tagi(command(stage, tmp_path, task_set, f"--trainer.max_steps={STEPS}", *THERE)) == 0
    found, expected = weights(tmp_path, stage), weights(chain, stage)
    assert found.keys() == expected.keys()
    assert not same_tensors(found, expected)  # attention is computed in another form
    assert all(torch.allclose(found[name], tensor, atol=1e-3) for name, tensor in expected.items())


def test_teachers_are_selected_and_compared_there_and_a_resumed_run_ends_alike(run, task_set, tmp_path, monkeypatch):
    options = ["--trainer.max_steps=4", *THERE, *VALIDATED, "--model.init_args.patience=1"]
    whole = tmp_path / "whole"
    for folder in (run, whole):
        copy_stages(run, whole, "pretrain-backbone") if folder == whole else None
    assert tagi(command("teachers", whole, task_set, *options)) == 0
    report = json.loads((whole / "teachers" / "report.json").read_text())
    assert all(row["teacher"] > 0 for row in report["teachers"] if row["instances"])
    assert any(row["instances"] for row in report["teachers"])
    log_loss, calls = Stage.log_loss, []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return log_loss(self, *args, **kwargs)

    again = tmp_path / "again"
    copy_stages(run, again, "pretrain-backbone")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log_loss", interrupted)
        assert tagi(command("teachers", again, task_set, *options)) == 130
    assert tagi(command("teachers", again, task_set, *options)) == 0
    assert same_tensors(weights(again, "teachers"), weights(whole, "teachers"))


def test_systems_are_evaluated_one_after_the_other_there(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "distill")
    systems = f"--model.init_args.systems=[{','.join(EVALUATED)}]"
    assert tagi(command("evaluate", tmp_path, task_set, systems, *THERE)) == 0
    for system in EVALUATED:
        metrics = json.loads((tmp_path / "evaluate" / system / "metrics.json").read_text())
        assert metrics["overall"]["n"] > 0
        assert metrics["flops"] > 0
    assert record_of(chain, "distill")["status"] == "finished"

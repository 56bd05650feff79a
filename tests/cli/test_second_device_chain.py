"""The chain as Lightning runs it on another device than the CPU, on one that needs no hardware (second_device.py).

Lightning builds a module on the device, moves it there and back, and calls its hooks before and after: nothing of that
shows on the CPU.
"""

import json

import pytest
import torch
from commands import STAGES, STEPS, VALIDATED, command, copy_stages, record_of, tagi, weights
from second_device import NAME, second_device

from tagi_lightning.stages import teachers
from tagi_lightning.stages.base import Stage
from tagi_lightning.teachers.gains import gain_sums

THERE = ("--trainer.accelerator=second", "--trainer.strategy=second", "--trainer.log_every_n_steps=1")
CONTROLS = ("mean_adapter", "nearest_teacher")


@pytest.fixture(autouse=True)
def second():
    with second_device() as device:
        yield device


def test_a_stage_trains_there_to_the_weights_of_the_cpu(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, *STAGES[:-1])
    assert tagi(command("distill", tmp_path, task_set, f"--trainer.max_steps={STEPS}", *THERE)) == 0
    found, expected, start = weights(tmp_path, "distill"), weights(chain, "distill"), weights(chain, "align")
    assert found.keys() == expected.keys()
    moved = max((expected[name] - tensor).abs().max() for name, tensor in start.items())
    apart = torch.cat([(found[name] - tensor).abs().flatten() for name, tensor in expected.items()])
    assert apart.mean() < 1e-3 * moved


def test_teachers_are_selected_resumed_and_compared_there(chain, task_set, tmp_path, monkeypatch):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    arguments = command("teachers", tmp_path, task_set, "--trainer.max_steps=4", *THERE, *VALIDATED)
    log_loss, calls, compared_on = Stage.log_loss, [], set()

    def compared(backbone, bank, batch):
        compared_on.add(batch.labels.device.type)
        return gain_sums(backbone, bank, batch)

    monkeypatch.setattr(teachers, "gain_sums", compared)

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return log_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log_loss", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            tagi(arguments)
    assert record_of(tmp_path, "teachers")["global_step"] == 3
    assert tagi(arguments) == 0
    report = json.loads((tmp_path / "teachers" / "report.json").read_text())
    assert any(row["instances"] and row["teacher"] > 0 for row in report["teachers"])
    assert compared_on == {NAME}  # after Lightning has moved the module to the CPU


def test_controls_are_evaluated_one_after_the_other_there(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "distill")
    systems = f"--model.init_args.systems=[{','.join(CONTROLS)}]"
    assert tagi(command("evaluate", tmp_path, task_set, systems, *THERE)) == 0
    for system in CONTROLS:
        metrics = json.loads((tmp_path / "evaluate" / system / "metrics.json").read_text())
        assert metrics["overall"]["n"] > 0
        assert metrics["flops"] > 0

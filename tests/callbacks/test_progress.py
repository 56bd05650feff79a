import sys

import pytest
from commands import command, copy_stages, tagi
from lightning.pytorch.callbacks import TQDMProgressBar

from tagi_lightning.callbacks import LineProgress, progress
from tagi_lightning.callbacks.progress import pace


def test_lines_give_step_speed_time_left_and_loss(chain, task_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    copy_stages(chain, tmp_path, "pretrain-backbone")
    assert tagi(command("teachers", tmp_path, task_set, "--trainer.max_steps=3")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teachers: step")]
    assert [line.split()[2].rstrip(",") for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(("/s, " in line or " s each, " in line) and " left, loss " in line for line in lines)
    assert " 0 s left" in lines[-1]


def test_lines_are_rare_and_can_be_switched_off(chain, task_set, tmp_path, monkeypatch, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    assert tagi(command("teachers", tmp_path, task_set, "--trainer.max_steps=2")) == 0
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    bar = LineProgress()
    bar.disable()
    bar._begin(0)
    bar._line("stage", "step", 1, 2)
    assert "step" not in capsys.readouterr().err
    bar.enable()
    bar._line("stage", "step", 1, 2)
    assert capsys.readouterr().err.startswith("stage: step 1/2")


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(LineProgress.for_this_output(), TQDMProgressBar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(LineProgress.for_this_output(), LineProgress)


@pytest.mark.parametrize(
    ("speed", "told"), [(12.46, "12.5/s"), (1.0, "1.0/s"), (0.25, "4.0 s each"), (1 / 212, "212.0 s each"), (0, "-")]
)
def test_the_pace_is_readable_at_any_speed(speed, told):
    assert pace(speed) == told

import json
import shutil

import pytest
import torch
import yaml
from commands import STAGES, command, tagi
from safetensors.torch import load_file

from tagi_lightning.stages import Distillation
from tagi_lightning.stages.base import Stage

STEPS = 3


def start_from(chain, run, *stages):
    """Gives a new run the results of some stages of the chain."""
    for stage in stages:
        shutil.copytree(chain / stage, run / stage)


def weights(run, stage):
    return load_file(run / stage / "model" / "model.safetensors")


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_configuration_record_checkpoints_model_and_curves(chain, stage):
    folder = chain / stage
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "run.json", "checkpoints", "model", "tensorboard"}
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "model" / "config.json").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    assert [path.name[:9] for path in (folder / "tensorboard").glob("events*")] == ["events.ou"]
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["max_steps"] == STEPS
    assert config["data"]["init_args"]["seed"] == config["seed_everything"] == 0
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert {"stage": stage, "status": "finished", "global_step": STEPS, "seed": 0, "starts": 1}.items() <= record.items()
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(record["commit"]) == 40
    assert record["trained_parameters"] > 0


def test_a_finished_stage_is_one_line_and_nothing_is_written(chain, task_set, capsys):
    files = {path: path.stat().st_mtime_ns for path in (chain / "distill").rglob("*")}
    assert tagi(command("distill", chain, task_set, f"--trainer.max_steps={STEPS}")) == 0
    assert capsys.readouterr().out == f"distill: already finished in {chain / 'distill'} (3 steps); nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in (chain / "distill").rglob("*")} == files


def test_the_saved_configuration_alone_names_the_same_run(chain, capsys):
    assert tagi(["fit", "--config", chain / "teachers" / "config.yaml"]) == 0
    assert "already finished" in capsys.readouterr().out


class Stop(Exception):
    pass


def interrupt(monkeypatch, at_step, how):
    """Interrupts every stage inside the training step that follows `at_step` optimizer steps."""
    plain_step = Stage.log_loss

    def stopping(self, *args, **kwargs):
        if self.global_step == at_step:
            how()
        plain_step(self, *args, **kwargs)

    monkeypatch.setattr(Stage, "log_loss", stopping)


def fail():
    raise Stop


def press_control_c():
    raise KeyboardInterrupt


DROPOUT = "--model.init_args.tagi.hypernetwork.dropout=0.2"


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("pretrain-backbone", []),
        ("teachers", []),
        ("pretrain", [DROPOUT]),
        ("align", [DROPOUT]),
        ("distill", [DROPOUT]),
    ],
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    chain, task_set, tmp_path, monkeypatch, capsys, stage, options
):
    earlier = STAGES[: STAGES.index(stage)]
    runs = [tmp_path / name for name in ("whole", "parts")]
    for run in runs:
        start_from(chain, run, *earlier)
    options = [*options, "--trainer.max_steps=5"]
    assert tagi(command(stage, runs[0], task_set, *options)) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 2, fail)
        with pytest.raises(Stop):
            tagi(command(stage, runs[1], task_set, *options))
    record = json.loads((runs[1] / stage / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["global_step"]) == ("failed", 2)
    assert not (runs[1] / stage / "model").exists()
    capsys.readouterr()
    assert tagi(command(stage, runs[1], task_set, *options)) == 0
    assert f"{stage}: going on from {runs[1] / stage / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().out
    record = json.loads((runs[1] / stage / "run.json").read_text(encoding="utf-8"))
    assert (record["status"], record["global_step"], record["starts"]) == ("finished", 5, 2)
    assert equal(weights(runs[0], stage), weights(runs[1], stage))

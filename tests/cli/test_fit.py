import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from commands import STAGES, command, tagi
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from tagi_lightning.cli import lightning_cli
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
    assert config["seed_everything"] == 0
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert {"stage": stage, "status": "finished", "global_step": STEPS, "seed": 0, "starts": 1}.items() <= record.items()
    assert record["versions"]["torch"] == torch.__version__
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


def stop():
    raise Stop


def interrupt(patch, at_step, how):
    """Makes `how` happen inside the training step that follows `at_step` optimizer steps, before anything is logged."""
    log_loss = Stage.log_loss

    def interrupted(self, *args, **kwargs):
        if self.global_step == at_step:
            how()
        log_loss(self, *args, **kwargs)

    patch.setattr(Stage, "log_loss", interrupted)


def save_checkpoints(every, *args, **options):
    return ModelCheckpoint(*args, **(options | {"every_n_train_steps": every}))


def record_of(run, stage):
    return json.loads((run / stage / "run.json").read_text(encoding="utf-8"))


DROPOUT = "--model.init_args.tagi.hypernetwork.dropout=0.2"
FEW = "--data.init_args.tasks_per_batch=24"
RESUMED_STEPS = 9
SEVERAL_EPOCHS = {
    "pretrain-backbone": ["--data.init_args.tasks.init_args.tasks_per_batch=90"],
    "teachers": [FEW, "--model.init_args.lora.dropout=0.2"],
    "pretrain": [DROPOUT],
    "align": [FEW, DROPOUT],
    "distill": ["--data.init_args.tasks_per_batch=45", "--model.init_args.tagi.lora.dropout=0.2"],
}
"""Options under which nine steps pass through several epochs and draw random numbers where they can."""


@pytest.fixture(scope="module")
def whole_run(chain, task_set, tmp_path_factory):
    """Runs a stage without interruption, once; returns its run folder."""
    runs = {}

    def whole(stage):
        if stage not in runs:
            runs[stage] = tmp_path_factory.mktemp("whole") / "run"
            start_from(chain, runs[stage], *STAGES[: STAGES.index(stage)])
            options = [*SEVERAL_EPOCHS[stage], f"--trainer.max_steps={RESUMED_STEPS}"]
            assert tagi(command(stage, runs[stage], task_set, *options)) == 0
        return runs[stage]

    return whole


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize(
    ("stage", "at_step"), [*((stage, 5) for stage in STAGES), *(("align", step) for step in (1, 3, 4, 7, 8))]
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    chain, whole_run, task_set, tmp_path, monkeypatch, capsys, stage, at_step, every
):
    whole, run = whole_run(stage), tmp_path / "run"
    start_from(chain, run, *STAGES[: STAGES.index(stage)])
    arguments = command(stage, run, task_set, *SEVERAL_EPOCHS[stage], f"--trainer.max_steps={RESUMED_STEPS}")
    with monkeypatch.context() as patch:
        patch.setattr(lightning_cli, "ModelCheckpoint", partial(save_checkpoints, every))
        interrupt(patch, at_step, stop)
        with pytest.raises(Stop):
            tagi(arguments)
    assert record_of(run, stage).items() >= {"status": "failed", "global_step": at_step, "starts": 1}.items()
    assert not (run / stage / "model").exists()
    capsys.readouterr()
    assert tagi(arguments) == 0
    assert f"{stage}: going on from {run / stage / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().out
    assert record_of(run, stage).items() >= {"status": "finished", "global_step": RESUMED_STEPS, "starts": 2}.items()
    assert equal(weights(run, stage), weights(whole, stage))

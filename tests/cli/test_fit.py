import os
import re
import shutil
import signal
from functools import partial

import pytest
import torch
import yaml
from commands import ROOT, STAGES, STEPS, command, copy_stages, record_of, same_tensors, tagi, weights

from tagi_lightning.callbacks import LastCheckpoint
from tagi_lightning.cli import lightning_cli
from tagi_lightning.stages.base import Stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_configuration_record_checkpoints_model_and_curves(chain, stage):
    folder = chain / stage
    report = {"report.json"} if stage == "teachers" else set()
    assert {path.name for path in folder.iterdir()} == report | {
        "config.yaml",
        "run.json",
        "checkpoints",
        "model",
        "tensorboard",
        ".lock",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert {"config.json", "model.safetensors"} <= {path.name for path in (folder / "model").iterdir()}
    assert list((folder / "tensorboard").glob("events.out*"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["max_steps"] == STEPS
    assert config["seed_everything"] == 0
    record = record_of(chain, stage)
    assert {
        "stage": stage,
        "status": "finished",
        "global_step": STEPS,
        "seed": 0,
        "starts": 1,
    }.items() <= record.items()
    assert record["versions"]["torch"] == torch.__version__
    assert record["trained_parameters"] > 0
    assert (record["frozen_parameters"] > 0) == (stage != "pretrain-backbone")


def test_nested_options_are_described_as_their_fields_are(capsys):
    with pytest.raises(SystemExit) as done:
        tagi(["fit", "--model.help", "Distillation"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--model.tagi.lora.rank RANK Rank r of every update (Table 6: 32). (type: int, default: 32)" in text
    assert re.findall(r"(--model\.\S+) \S+ \(type:", text) == []


def test_the_record_names_the_commit_where_there_is_one(chain):
    assert record_of(chain, "teachers")["commit"] is None or len(record_of(chain, "teachers")["commit"]) == 40
    assert (record_of(chain, "teachers")["commit"] is not None) == (ROOT / ".git").exists()


def test_a_finished_stage_is_one_line_and_nothing_is_written(chain, task_set, capsys):
    files = {path: path.stat().st_mtime_ns for path in (chain / "distill").rglob("*")}
    assert tagi(command("distill", chain, task_set, f"--trainer.max_steps={STEPS}")) == 0
    assert capsys.readouterr().out == f"distill: already finished in {chain / 'distill'} (3 steps); nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in (chain / "distill").rglob("*")} == files


def test_the_saved_configuration_alone_names_the_same_run(chain, capsys):
    assert tagi(["fit", "--config", chain / "teachers" / "config.yaml"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_trial_of_one_batch_writes_nothing(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    assert tagi(command("teachers", tmp_path / "run", task_set, "--trainer.fast_dev_run=true")) == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pretrain-backbone"]


class Stop(Exception):
    pass


def stop():
    raise Stop


def press_control_c():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(patch, at_step, how):
    """Makes `how` happen inside the training step that follows `at_step` optimizer steps, before anything is logged."""
    log_loss = Stage.log_loss

    def interrupted(self, *args, **kwargs):
        if self.global_step == at_step:
            how()
        log_loss(self, *args, **kwargs)

    patch.setattr(Stage, "log_loss", interrupted)


def save_checkpoints(every, folder, _, *args):
    return LastCheckpoint(folder, every, *args)


DROPOUT = "--model.init_args.tagi.hypernetwork.dropout=0.2"
RESUMED_STEPS = 9
SEVERAL_EPOCHS = {
    "pretrain-backbone": ["--data.init_args.tasks.init_args.tasks_per_batch=90"],
    "teachers": ["--data.init_args.tasks_per_batch=45", "--model.init_args.lora.dropout=0.2"],
    "pretrain": [DROPOUT],
    "align": ["--data.init_args.tasks_per_batch=24", DROPOUT],
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
            copy_stages(chain, runs[stage], *STAGES[: STAGES.index(stage)])
            options = [*SEVERAL_EPOCHS[stage], f"--trainer.max_steps={RESUMED_STEPS}"]
            assert tagi(command(stage, runs[stage], task_set, *options)) == 0
        return runs[stage]

    return whole


@pytest.mark.parametrize(
    ("stage", "at_step", "every"),
    [*((stage, 5, 100) for stage in STAGES), ("align", 1, 1), ("align", 4, 1), ("align", 4, 100), ("align", 7, 1)],
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    chain, whole_run, task_set, tmp_path, monkeypatch, capsys, stage, at_step, every
):
    whole, run = whole_run(stage), tmp_path / "run"
    copy_stages(chain, run, *STAGES[: STAGES.index(stage)])
    arguments = command(stage, run, task_set, *SEVERAL_EPOCHS[stage], f"--trainer.max_steps={RESUMED_STEPS}")
    with monkeypatch.context() as patch:
        patch.setattr(lightning_cli, "LastCheckpoint", partial(save_checkpoints, every))
        interrupt(patch, at_step, stop)
        with pytest.raises(Stop):
            tagi(arguments)
    assert record_of(run, stage).items() >= {"status": "failed", "global_step": at_step, "starts": 1}.items()
    assert not (run / stage / "model").exists()
    capsys.readouterr()
    assert tagi(arguments) == 0
    assert f"{stage}: going on from {run / stage / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().out
    assert record_of(run, stage).items() >= {"status": "finished", "global_step": RESUMED_STEPS, "starts": 2}.items()
    assert same_tensors(weights(run, stage), weights(whole, stage))


@pytest.mark.parametrize(("how", "code", "steps"), [(press_control_c, 130, 3), (terminate, 143, 3)])
def test_an_interrupted_stage_says_so_exits_as_a_shell_expects_and_goes_on(
    chain, whole_run, task_set, tmp_path, monkeypatch, capsys, how, code, steps
):
    run = tmp_path / "run"
    copy_stages(chain, run, *STAGES[:3])
    arguments = command("align", run, task_set, *SEVERAL_EPOCHS["align"], f"--trainer.max_steps={RESUMED_STEPS}")
    with monkeypatch.context() as patch:
        interrupt(patch, 2, how)
        assert tagi(arguments) == code
    assert f"align: interrupted after {steps} steps; the same command goes on" in capsys.readouterr().out
    assert record_of(run, "align").items() >= {"status": "interrupted", "global_step": steps}.items()
    assert not (run / "align" / "model").exists()
    assert tagi(arguments) == 0
    assert same_tensors(weights(run, "align"), weights(whole_run("align"), "align"))


def test_more_steps_go_on_from_a_finished_stage(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path / "run", *STAGES[:3])
    assert tagi(command("pretrain", tmp_path / "run", task_set, f"--trainer.max_steps={STEPS + 1}")) == 0
    assert "going on from" in capsys.readouterr().out
    assert record_of(tmp_path / "run", "pretrain")["global_step"] == STEPS + 1


@pytest.mark.parametrize(
    "option",
    [
        "--model.init_args.optimizer.lr=0.5",
        "--model.init_args.lora.rank=4",
        "--trainer.accumulate_grad_batches=2",
        "--data.init_args.tasks_per_batch=2",
        "--data.init_args.max_train_instances=3",
        "--trainer.precision=bf16-mixed",
        "--seed_everything=1",
        "--setting=def+2pos",
    ],
)
def test_another_configuration_in_the_same_folder_is_an_error_that_names_it(chain, task_set, capsys, option):
    files = {path: path.stat().st_mtime_ns for path in (chain / "teachers").rglob("*")}
    assert tagi(command("teachers", chain, task_set, f"--trainer.max_steps={STEPS}", option)) == 1
    told = capsys.readouterr().err
    name, value = option[2:].split("=")
    assert f"{chain / 'teachers'} was made with another configuration" in told
    assert name in told
    assert f"{value} now (" in told.replace("'", "")
    assert "another RUN" in told
    assert {path: path.stat().st_mtime_ns for path in (chain / "teachers").rglob("*")} == files


def test_steps_logging_and_workers_given_to_a_resumed_run_are_used(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    schedule = ["--model.init_args.optimizer.schedule=linear", "--model.init_args.optimizer.warmup=0"]
    assert (
        tagi(command("teachers", tmp_path, task_set, "--trainer.max_steps=2", "--trainer.logger=false", *schedule)) == 0
    )
    options = ["--trainer.max_steps=4", "--trainer.log_every_n_steps=2", "--data.init_args.num_workers=1"]
    assert tagi(command("teachers", tmp_path, task_set, *options, *schedule)) == 0
    last = torch.load(tmp_path / "teachers" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    given = last["run"]["configuration"]
    assert given["trainer"]["log_every_n_steps"] == 2
    assert given["data"]["init_args"]["num_workers"] == 1
    assert list((tmp_path / "teachers" / "tensorboard").glob("events.out*"))


def test_the_rate_of_a_resumed_run_follows_the_steps_it_is_given(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, *STAGES[:3])
    schedule = ["--model.init_args.optimizer.schedule=linear", "--model.init_args.optimizer.warmup=0"]
    for steps in (2, 4):
        assert tagi(command("align", tmp_path, task_set, f"--trainer.max_steps={steps}", *schedule)) == 0
        path = tmp_path / "align" / "checkpoints"
        last, previous = (torch.load(path / f"{name}.ckpt", weights_only=True) for name in ("last", "previous"))
        peak = last["optimizer_states"][0]["param_groups"][0]["initial_lr"]
        assert last["lr_schedulers"][0]["_last_lr"] == [0.0]
        assert previous["lr_schedulers"][0]["_last_lr"] == [peak / steps]


def test_a_run_folder_from_before_an_option_existed_goes_on(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers")
    path = tmp_path / "teachers" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["model"]["init_args"]["patience"], config["backbone"]["attention"], config["data"]["init_args"]["prompt"]
    path.write_text(yaml.safe_dump(config))
    more = f"--trainer.max_steps={STEPS + 1}"
    assert tagi(command("teachers", tmp_path, task_set, more, "--model.init_args.patience=7")) == 1
    assert "model.init_args.patience: 3 there, 7 now" in capsys.readouterr().err
    assert tagi(command("teachers", tmp_path, task_set, more)) == 0
    assert f"step {STEPS} of {STEPS + 1}" in capsys.readouterr().out


def test_where_and_how_long_a_stage_runs_may_change(chain, task_set, capsys):
    options = [f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=7", "--trainer.enable_model_summary=false"]
    assert tagi(command("teachers", chain, task_set, *options)) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_damaged_record_is_an_error(chain, task_set, tmp_path, capsys, name):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    (tmp_path / "run" / "pretrain-backbone" / name).write_text("{", encoding="utf-8")
    assert tagi(command("pretrain-backbone", tmp_path / "run", task_set)) == 1
    assert f"{name} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "there", "told"),
    [
        ("teachers", (), "make pretrain-backbone"),
        ("pretrain", (), "make pretrain-backbone"),
        ("align", ("pretrain-backbone",), "make pretrain"),
        ("align", ("pretrain-backbone", "pretrain"), "make teachers"),
        ("distill", ("pretrain-backbone",), "make pretrain"),
        ("distill", ("pretrain-backbone", "pretrain"), "make teachers"),
        ("evaluate", ("pretrain-backbone",), "make distill"),
    ],
)
def test_a_missing_input_names_the_command_that_makes_it(chain, task_set, tmp_path, capsys, stage, there, told):
    copy_stages(chain, tmp_path / "run", *there)
    assert tagi(command(stage, tmp_path / "run", task_set)) == 1
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message


def test_a_missing_data_folder_names_the_command_that_makes_it(chain, tmp_path, task_set, capsys):
    arguments = command(
        "teachers", tmp_path / "run", task_set, TASKSET="sni", SIZE="tiny", TOKENIZER=task_set / "tokenizer"
    )
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    arguments = [*arguments[:-1], "--data_folder", tmp_path / "absent"]
    assert tagi(arguments) == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "absent") in message
    assert "make data TASKSET=sni" in message


def test_a_missing_tokenizer_says_how_to_give_one(tmp_path, capsys):
    arguments = command("pretrain-backbone", tmp_path / "run", tmp_path, TASKSET="sni", SIZE="tiny")
    assert tagi(arguments[:-1]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tagi fit: backbone 'tiny' is trained from scratch")
    assert "TOKENIZER=" in said


def test_missing_inputs_are_done_without_by_a_switch_alone(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    options = ["--model.init_args.init_from=none", "--model.init_args.teachers=none", "--trainer.fast_dev_run=true"]
    assert tagi(command("distill", tmp_path / "run", task_set, *options)) == 0


@pytest.mark.parametrize(
    "option", ["--trainer.max_step=3", "--model.init_args.lora.rnk=4", "--data.init_args.x=1", "--lr=1"]
)
def test_an_unknown_option_is_short_and_exits_with_2(chain, task_set, capsys, option):
    with pytest.raises(SystemExit) as error:
        tagi(command("teachers", chain, task_set, option))
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert option.split("=")[0].rpartition(".")[2].strip("-") in message
    assert len(message) < 2000


def test_a_start_that_failed_binds_nobody_to_its_configuration(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone")
    assert tagi(command("teachers", run, task_set, "--data.init_args.prompt=causal")) == 1
    assert record_of(run, "teachers")["status"] == "failed"
    assert tagi(command("teachers", run, task_set, "--trainer.max_steps=1")) == 0
    assert "finished after 1 steps" in capsys.readouterr().out


def test_a_finished_stage_whose_model_was_removed_is_made_again(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone", "teachers")
    shutil.rmtree(run / "teachers" / "model")
    assert tagi(command("teachers", run, task_set, f"--trainer.max_steps={STEPS}")) == 0
    assert same_tensors(weights(run, "teachers"), weights(chain, "teachers"))


def test_several_lengths_go_on_from_the_newest_checkpoint_also_in_a_moved_folder(chain, task_set, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    copy_stages(chain, run, "pretrain-backbone")
    for steps in (2, 4, 5):
        assert tagi(command("teachers", run, task_set, f"--trainer.max_steps={steps}")) == 0
    run.rename(moved)
    assert tagi(command("teachers", moved, task_set, "--trainer.max_steps=7")) == 0
    assert tagi(command("teachers", moved, task_set, "--trainer.max_steps=8")) == 0
    assert [path.name for path in (moved / "teachers" / "checkpoints").glob("last*")] == ["last.ckpt"]
    straight = tmp_path / "straight"
    copy_stages(chain, straight, "pretrain-backbone")
    assert tagi(command("teachers", straight, task_set, "--trainer.max_steps=8")) == 0
    last = [torch.load(each / "teachers/checkpoints/last.ckpt", weights_only=True) for each in (moved, straight)]
    assert [state["global_step"] for state in last] == [8, 8]


def test_a_finished_stage_whose_input_was_trained_on_is_told(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, *STAGES)
    assert tagi(command("pretrain-backbone", run, task_set, f"--trainer.max_steps={STEPS + 3}")) == 0
    assert tagi(command("teachers", run, task_set, f"--trainer.max_steps={STEPS}")) == 1
    assert "finished on other results of pretrain-backbone" in capsys.readouterr().err


def test_a_named_input_that_was_trained_on_is_told_too(chain, task_set, tmp_path, capsys):
    shared, own = tmp_path / "shared", tmp_path / "own"
    copy_stages(chain, shared, "pretrain-backbone", "teachers", "pretrain")
    models = {stage: shared / stage / "model" for stage in ("pretrain-backbone", "teachers", "pretrain")}
    named = ("backbone.name", "model.init_args.teachers", "model.init_args.init_from")
    options = [f"--{name}={model}" for name, model in zip(named, models.values(), strict=True)]
    align = command("align", own, task_set, *options, "--trainer.max_steps=1")
    assert tagi(align) == 0
    assert set(record_of(own, "align")["inputs"]) == set(models)
    assert tagi(align) == 0
    assert tagi(command("pretrain", shared, task_set, f"--trainer.max_steps={STEPS + 1}")) == 0
    assert tagi(align) == 1
    assert "finished on other results of pretrain than" in capsys.readouterr().err


def test_a_cut_off_checkpoint_is_named(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone", "teachers")
    last = run / "teachers" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert tagi(command("teachers", run, task_set, f"--trainer.max_steps={STEPS + 1}")) == 0
    told = capsys.readouterr().out
    assert "last.ckpt is damaged" in told
    assert f"going on from {last.with_name('previous.ckpt')}, step {STEPS - 1} of {STEPS + 1}" in told
    assert last.with_name("last.ckpt.refused").is_file()


def test_where_every_checkpoint_is_cut_off_all_are_named(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone", "teachers")
    for path in (run / "teachers" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert tagi(command("teachers", run, task_set, f"--trainer.max_steps={STEPS + 1}")) == 1
    told = capsys.readouterr().err
    assert "last.ckpt is damaged" in told
    assert "previous.ckpt is damaged" in told

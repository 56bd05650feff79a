"""Several devices, as gloo processes on the CPU: what one device would have made, and what happens when one ends."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from commands import STAGES, command, copy_stages, weights
from device_runs import devices, double_precision, forked, run_forked, started
from reliability_runs import Process, difference, final_state, run_alone

import tagi_lightning.callbacks.finite as finite
from tagi_lightning.data import token_cache
from tagi_lightning.stages import base
from tagi_lightning.stages.distill import Distillation

pytestmark = pytest.mark.reliability

TOLERANCE = 1e-9

SHAPES = {
    "pretrain": ["--data.init_args.batch_size=3"],
    "align": ["--data.init_args.tasks_per_batch=5"],
    "pretrain-backbone": ["--data.init_args.tasks.init_args.tasks_per_batch=3"],
}
"""Batches that no number of devices divides."""
TASKS = ["--data.init_args.tasks_per_batch=5", "--data.init_args.instances_per_task=1"]


def train(stage, made, tasks, folder, count, *options, before=lambda: None):
    """Trains a stage on some devices in float64, with the losses in `folder`/0.losses; asserts that it ends well."""
    copy_stages(made, folder / "run", *STAGES[: STAGES.index(stage)])
    # at the rate that tiny models are trained with, rounding grows tenfold in a step
    shape = ["--trainer.precision=64-true", "--model.init_args.optimizer.lr=1e-4", *SHAPES.get(stage, TASKS)]
    shape += ["--trainer.log_every_n_steps=1"]
    arguments = command(stage, folder / "run", tasks, *shape, *options, *(devices(count) if count > 1 else []))

    def prepared():
        double_precision()
        note_losses(folder)
        before()

    if count == 1:
        assert Process(arguments, folder / "0.log", prepared).wait() == 0, (folder / "0.log").read_text()
    else:
        codes = run_forked(arguments, folder, count, prepared)
        assert codes == [0] * count, (folder / "0.log").read_text() + (folder / "1.log").read_text()
    return folder


def note_losses(folder):
    """Notes every loss that is logged, in full precision."""
    over_devices = base.over_devices

    def noted(trainer, mean):
        value = over_devices(trainer, mean)
        with (folder / f"{trainer.global_rank}.losses").open("a") as stream:
            print(float(value), file=stream)
        return value

    base.over_devices = noted


def losses(folder):
    return [float(line) for line in (folder / "0.losses").read_text().split()]


def largest_difference(stage, one, other):
    left, right = weights(one / "run", stage), weights(other / "run", stage)
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


@pytest.fixture(scope="module")
def alone(made, tasks, tmp_path_factory):
    """A function that trains a stage on one device, once."""
    found = {}

    def alone(stage, *options):
        if (stage, options) not in found:
            folder = tmp_path_factory.mktemp(f"alone-{stage}")
            found[stage, options] = train(stage, made, tasks, folder, 1, *options)
        return found[stage, options]

    return alone


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("stage", ["distill", "teachers"])
def test_devices_train_what_one_trains(made, tasks, alone, tmp_path, record, stage, accumulated, count):
    options = ["--trainer.max_steps=20", f"--trainer.accumulate_grad_batches={accumulated}"]
    expected = alone(stage, *options)
    found = train(stage, made, tasks, tmp_path, count, *options)
    assert largest_difference(stage, found, expected) < TOLERANCE
    # with other numbers of batches at once, only the first of a step's batches are those that one device logs
    if accumulated == 1:
        assert losses(found) == pytest.approx(losses(expected), rel=TOLERANCE, abs=TOLERANCE)
    record(
        f"{count} devices, 20 steps of {stage}, accumulation {accumulated}",
        1,
        f"weights within {TOLERANCE:g} of one device's" + (", losses too" if accumulated == 1 else ""),
    )


@pytest.mark.parametrize("stage", ["pretrain-backbone", "pretrain", "align"])
def test_other_stages_train_what_one_device_trains(made, tasks, alone, tmp_path, record, stage):
    options = ["--trainer.max_steps=8", "--trainer.accumulate_grad_batches=2"]
    found = train(stage, made, tasks, tmp_path, 2, *options)
    assert largest_difference(stage, found, alone(stage, *options)) < TOLERANCE
    record(f"2 devices, 8 steps of {stage}", 1, f"weights within {TOLERANCE:g} of one device's")


def test_validation_scores_are_those_of_one_device(made, tasks, alone, tmp_path, record):
    options = ["--trainer.max_steps=4", "--data.init_args.val_split=instances", "--data.init_args.eval_batch_size=7"]
    options += ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"]
    expected = alone("distill", *options)
    found = train("distill", made, tasks, tmp_path, 3, *options)
    figures = [json.loads((run / "run" / "distill" / "run.json").read_text())["metrics"] for run in (expected, found)]
    names = ("val/loss", "val/rougeL", "val/exact_match")
    assert [figures[1][name] for name in names] == pytest.approx([figures[0][name] for name in names], rel=1e-6)
    record("3 devices, validation in uneven parts", 1, "loss, ROUGE-L and exact match of one device")


def test_evaluation_leaves_the_files_of_one_device(made, tasks, tmp_path, record):
    answers = {}
    options = ["--model.init_args.systems=[copy_input,wrong_instruction,tagi]", "--data.init_args.eval_batch_size=7"]
    for count in (1, 2, 3):
        run = tmp_path / f"{count}" / "run"
        shutil.copytree(made, run)
        arguments = command("evaluate", run, tasks, *options, *(devices(count) if count > 1 else []))
        codes = run_forked(arguments, run.parent, count) if count > 1 else [run_alone(arguments, run.parent / "0.log")]
        assert codes == [0] * count, (run.parent / "0.log").read_text()
        systems = sorted(path for path in (run / "evaluate").iterdir() if path.is_dir())
        assert [sorted(path.name for path in system.iterdir()) for system in systems] == [
            ["config.yaml", "metrics.json", "predictions.jsonl"]
        ] * 3
        answers[count] = [
            ((system / "predictions.jsonl").read_bytes(), scores(system / "metrics.json")) for system in systems
        ]
    assert answers[2] == answers[1]
    assert answers[3] == answers[1]
    record("Evaluation on 2 and 3 devices, uneven parts", 2, "predictions byte for byte and metrics those of one")


def scores(path):
    """Returns all of a metrics.json that does not say where and when it was made."""
    metrics = json.loads(path.read_text())
    return {name: metrics[name] for name in metrics.keys() - {"seconds", "weights", "teachers", "backbone", "commit"}}


def test_data_is_tokenised_once(made, tasks, tmp_path, record):
    tokenize = token_cache._tokenize_tasks

    def noted(*args, **kwargs):
        with (tmp_path / "tokenised").open("a") as stream:
            print(os.environ["LOCAL_RANK"], file=stream)
        return tokenize(*args, **kwargs)

    def before():
        token_cache._tokenize_tasks = noted

    options = ["--trainer.max_steps=1", f"--data.init_args.cache_dir={tmp_path / 'cache'}"]
    train("distill", made, tasks, tmp_path, 2, *options, before=before)
    assert set((tmp_path / "tokenised").read_text().split()) == {"0"}
    record("2 devices, an empty cache", 1, "tokenised by the first device alone")


DROPOUT = ["--model.init_args.tagi.lora.dropout=0.2", "--data.init_args.tasks_per_batch=5"]


def test_a_signal_to_the_first_device_stops_all_and_they_go_on_to_the_same_bits(start, tmp_path, record):
    runs = {}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        arguments = [*start("distill", folder / "run", *DROPOUT, steps=30), *devices(2)]
        if name == "stopped":
            processes = forked(arguments, folder, 2, slowly)
            processes[0].wait_for("BATCH 8")
            processes[0].send(signal.SIGTERM)
            assert [process.wait() for process in processes] == [143, 143], processes[1].printed()
            assert "the same command goes on" in processes[0].printed()
        assert run_forked(arguments, folder, 2) == [0, 0], (folder / "0.log").read_text()
        runs[name] = folder / "run"
    assert "going on from" in (tmp_path / "stopped" / "0.log").read_text()
    assert difference(final_state(runs["stopped"], "distill"), final_state(runs["whole"], "distill")) is None
    assert difference(weights(runs["stopped"], "distill"), weights(runs["whole"], "distill")) is None
    record("SIGTERM to one of 2 devices", 1, "both exit code 143, resumed to the same bits")


def slowly():
    """Tells the batches of a process, which take their time."""
    step = Distillation.training_step

    def slowed(self, batch, batch_index):
        print(f"BATCH {batch_index}", flush=True)
        time.sleep(0.05)
        return step(self, batch, batch_index)

    Distillation.training_step = slowed


def test_a_run_goes_on_with_another_number_of_devices(made, tasks, alone, tmp_path, record):
    options = ["--trainer.accumulate_grad_batches=2", "--model.init_args.optimizer.schedule=constant_with_warmup"]
    options += ["--model.init_args.optimizer.warmup=0"]
    expected = alone("distill", *options, "--trainer.max_steps=12")
    train("distill", made, tasks, tmp_path, 2, *options, "--trainer.max_steps=7")
    shutil.rmtree(tmp_path / "run" / "distill" / "model")
    for stage in STAGES[:-1]:
        shutil.rmtree(tmp_path / "run" / stage)
    found = train("distill", made, tasks, tmp_path, 1, *options, "--trainer.max_steps=12")
    assert largest_difference("distill", found, expected) < TOLERANCE
    record("2 devices, going on with 1", 1, f"weights within {TOLERANCE:g} of one device's")


@pytest.mark.parametrize("killed", ["the first", "the second"])
def test_a_killed_device_ends_the_others(start, tmp_path, record, killed):
    log = tmp_path / "log"
    arguments = start("align", tmp_path / "run", steps=100_000)
    first = started([*arguments, *devices(2)], log)
    last = tmp_path / "run" / "align" / "run.json"
    wait(lambda: "2 devices:" in log.read_text() and last.is_file(), 120)
    time.sleep(2)
    [second] = map(int, subprocess.run(["pgrep", "-P", f"{first.pid}"], capture_output=True, text=True).stdout.split())
    os.kill(first.pid if killed == "the first" else second, signal.SIGKILL)
    since = time.monotonic()
    code = first.wait(timeout=60)
    wait(lambda: not is_running(second), 60)
    seconds = time.monotonic() - since
    assert code == (-signal.SIGKILL if killed == "the first" else 1)
    told = "the first device's process" if killed == "the first" else f"device 1 ({second}) was ended by SIGKILL"
    assert told in log.read_text()
    assert seconds < 60
    record(f"SIGKILL of {killed} of 2 devices", 1, "told, and the other one ended within a minute")


def wait(until, seconds):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process):
    return (
        subprocess.run(["ps", "-o", "stat=", "-p", f"{process}"], capture_output=True, text=True).stdout[:1] not in "Z"
    )


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="Lightning and torch shard weights over GPUs alone: needs two"
)
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2"])
def test_strategies_that_shard_train_too(made, tasks, tmp_path, record, strategy):
    if strategy == "deepspeed_stage_2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install 'tagi-lightning[deepspeed]'")
    arguments = command("pretrain-backbone", tmp_path / "run", tasks, *devices(2, strategy), "--trainer.max_steps=4")
    options = ["--trainer.accelerator=gpu", "--trainer.precision=bf16-mixed"]
    assert started([*arguments, *options], tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run", "pretrain-backbone").values())
    record(f"2 GPUs, {strategy}", 1, "four steps and a model")


def wrong_on_the_second():
    """Makes one loss of the second device NaN."""
    step = Distillation.training_step

    def changed(self, batch, batch_index):
        loss = step(self, batch, batch_index)
        return loss * float("nan") if self.global_rank == 1 and batch_index == 3 else loss

    Distillation.training_step = changed


def test_a_wrong_number_on_one_device_stops_all_or_is_left_out_by_all(start, tmp_path, record):
    folder = tmp_path
    arguments = [*start("distill", folder / "run", "--trainer.accumulate_grad_batches=1", steps=6), *devices(2)]
    assert run_forked(arguments, folder, 2, wrong_on_the_second) == [1, 1], (folder / "0.log").read_text()
    for rank in range(2):
        assert "step 4: device 1: loss nan on" in (folder / f"{rank}.log").read_text()
    dumps = sorted(path.name for path in (folder / "run" / "distill" / finite.FOLDER).iterdir())
    assert dumps == ["step-4-device-0.pt", "step-4-device-1.pt"]
    again = [*arguments, "--max_skipped_steps=1"]
    assert run_forked(again, folder, 2, wrong_on_the_second) == [0, 0], (folder / "0.log").read_text()
    assert "step 4 is left out (1 of at most 1)" in (folder / "0.log").read_text()
    assert all(weight.isfinite().all() for weight in weights(folder / "run", "distill").values())
    record("NaN on one of 2 devices", 2, "both stop before the step, or both leave it out")

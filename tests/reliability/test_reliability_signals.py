"""Signals in every phase: the exit code, what is left, and that the same command goes on to the same bits."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import ROOT, command
from reliability_runs import Process, assert_same_run, difference, final_state, last_step, run_alone

from tagi_lightning.data import token_cache
from tagi_lightning.stages.base import Stage
from tagi_lightning.stages.tagi import TagiStage

pytestmark = pytest.mark.reliability

SCRIPT = ROOT / "experiments" / "trainers" / "slurm.sbatch"
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def slow(owner, name, text, seconds=0.5):
    """Makes a function tell when it is called, and take its time."""
    original = getattr(owner, name)

    def slowed(*args, **kwargs):
        print(text, flush=True)
        time.sleep(seconds)
        return original(*args, **kwargs)

    setattr(owner, name, slowed)


PHASES = {
    "reading and tokenising": lambda: slow(token_cache, "_tokenize_tasks", "PHASE"),
    "training": lambda: slow(Stage, "log_loss", "PHASE", 0.3),
    "validation": lambda: slow(TagiStage, "validation_step", "PHASE", 0.3),
}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_stops_where_nothing_is_lost(start, whole, tmp_path, record, phase, number):
    options = ["--data.init_args.val_split=instances", "--trainer.val_check_interval=20"]
    options += ["--trainer.check_val_every_n_epoch=null", f"--data.init_args.cache_dir={tmp_path / 'cache'}"]
    expected, expected_log = whole("distill", *options[:3])
    run, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = start("distill", run, *options)
    process = Process(arguments, logs[0], PHASES[phase])
    process.wait_for("PHASE")
    process.send(number)
    since = time.monotonic()
    assert process.wait() == CODES[number], process.printed()
    assert time.monotonic() - since < 30
    assert "the same command goes on" in process.printed()
    assert "Traceback" not in process.printed()
    assert not list((tmp_path / "cache").glob("writing-*"))
    assert run_alone(arguments, logs[1]) == 0, logs[1].read_text()
    assert_same_run(run, expected, "distill", logs, expected_log)
    record(f"{number.name} in {phase}", 1, f"exit code {CODES[number]}, resumed to the same bits")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_second_signal_ends_at_once(start, tmp_path, record, number):
    process = Process(start("align", tmp_path / "run"), tmp_path / "log", lambda: slow(Stage, "log_loss", "PHASE", 60))
    process.wait_for("PHASE")
    process.send(number)
    time.sleep(1.2)
    process.send(number)
    since = time.monotonic()
    assert process.wait() == -number
    assert time.monotonic() - since < 5
    record(f"{number.name} twice", 1, "ended at once by the second")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_in_generation_keeps_what_is_complete(made, tasks, tmp_path, record, number):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    options = ["--model.init_args.systems=[copy_input,tagi]", "--model.init_args.flops=false"]
    arguments = command("evaluate", run, tasks, *options)

    def slowed():
        from tagi_lightning.stages.evaluate import Evaluation

        slow(Evaluation, "test_step", "PHASE", 0.3)

    process = Process(arguments, tmp_path / "0.log", slowed)
    process.wait_for("PHASE")
    process.send(number)
    assert process.wait() == CODES[number], process.printed()
    assert {path.name for path in (run / "evaluate").iterdir() if path.is_dir()} == {"copy_input"}
    assert run_alone(arguments, tmp_path / "1.log") == 0
    assert "copy_input is already in" in (tmp_path / "1.log").read_text()
    assert (run / "evaluate" / "tagi" / "metrics.json").is_file()
    record(f"{number.name} in generation", 1, f"exit code {CODES[number]}, complete systems kept")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_while_data_is_made(tmp_path, record, number):
    from tagi_lightning.data import synthetic

    target = tmp_path / "data"
    process = Process(
        ["data", "--taskset", "synthetic", "--folder", target],
        tmp_path / "log",
        lambda: slow(synthetic, "write_synthetic", "PHASE", 5),
    )
    process.wait_for("PHASE")
    process.send(number)
    assert process.wait() == CODES[number], process.printed()
    assert run_alone(["data", "--taskset", "synthetic", "--folder", target], tmp_path / "again.log") == 0
    record(f"{number.name} in tagi data", 1, f"exit code {CODES[number]}, made by the same command")


def test_a_group_signal_is_one_request_and_workers_leave_it_to_the_run(start, whole, tmp_path, record):
    expected, expected_log = whole("distill")
    run, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = start("distill", run, "--data.init_args.num_workers=2")
    process = Process(arguments, logs[0], lambda: slow(Stage, "log_loss", "PHASE", 0.3))
    process.wait_for("PHASE")
    os.killpg(process.id, signal.SIGTERM)
    process.send(signal.SIGTERM)
    assert process.wait() == 143, process.printed()
    assert run_alone(arguments, logs[1]) == 0
    assert_same_run(run, expected, "distill", logs, expected_log)
    record("SIGTERM to a run, its loader workers and again", 1, "exit code 143, resumed to the same bits")


def test_the_batch_file_stops_the_run_requeues_itself_and_goes_on(start, whole, tmp_path, record):
    """Runs the SLURM script with a scontrol that notes what it is told, and a make that runs one stage."""
    expected, _ = whole("align")
    run, binaries = tmp_path / "run", tmp_path / "bin"
    words = shlex.join(map(str, start("align", run)))
    binaries.mkdir()
    for name, text in {
        "scontrol": f'echo "$@" >> {tmp_path}/scontrol.txt',
        "one-stage": f"cd {ROOT}; {sys.executable} -m tagi_lightning.cli {words}; exit 2",
    }.items():
        (binaries / name).write_text(f"#!/bin/bash\n{text}\n")
        (binaries / name).chmod(0o755)
    surroundings = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "MAKE": "one-stage",
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
    }
    log = tmp_path / "log"
    with log.open("w") as stream:
        job = subprocess.Popen(["bash", SCRIPT, "align"], env=surroundings, stdout=stream, stderr=stream)
        while job.poll() is None and last_step(run, "align") is None:
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait() == 0, log.read_text()
    assert "align: interrupted after" in log.read_text(), log.read_text()
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"
    assert run_alone(start_again(words), tmp_path / "again.log") == 0
    assert difference(final_state(run, "align"), final_state(expected, "align")) is None
    record("SIGUSR1 to the SLURM script", 1, "saved, requeued, resumed to the same bits")


def start_again(words):
    return shlex.split(words)

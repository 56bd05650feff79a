"""Trainings in processes of their own, which may be killed, and what of two runs must be the same bit for bit."""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from commands import ROOT, weights
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tagi_lightning.cli import main
from tagi_lightning.stages.base import Stage

POINTS = int(os.environ.get("POINTS", "20"))
"""Kill points of a stage."""

RECORD = Path(os.environ.get("RECORD", ".cache/reliability.json"))
"""Where counts go."""

STEPS_OF_RUN = 40
"""Optimizer steps of a run that is killed; its state is written every two."""

OPTIONS = {
    "pretrain": [
        "--model.init_args.tagi.hypernetwork.dropout=0.2",
        "--data.init_args.batch_size=2",
        "--data.init_args.max_length=64",
        "--data.init_args.val_share=0.3",
        "--data.init_args.max_val_sequences=12",
        "--data.init_args.eval_batch_size=4",
        "--trainer.val_check_interval=7",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.accumulate_grad_batches=1",
    ],
    "distill": [
        "--data.init_args.tasks_per_batch=8",
        "--data.init_args.instances_per_task=1",
        "--data.init_args.max_train_instances=2",
        "--model.init_args.tagi.lora.dropout=0.2",
        "--trainer.accumulate_grad_batches=2",
    ],
    "pretrain-backbone": ["--data.init_args.tasks.init_args.tasks_per_batch=90"],
    "teachers": [
        "--data.init_args.tasks_per_batch=45",
        "--model.init_args.lora.dropout=0.2",
        "--trainer.accumulate_grad_batches=2",
    ],
    "align": ["--data.init_args.tasks_per_batch=24", "--model.init_args.tagi.hypernetwork.dropout=0.2"],
}
"""Several epochs, dropout, accumulation and validation, wherever a stage can."""


class Process:
    """A forked process that runs `tagi`, with what it prints in `log`, and its batches in `log`.batches."""

    def __init__(self, arguments, log, before=None):
        self.log = log
        self.id = os.fork()
        if self.id == 0:
            code = 70
            try:
                os.setsid()
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(output, stream)
                sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
                note_batches(log.with_suffix(".batches"))
                if before:
                    before()
                with contextlib.chdir(ROOT):
                    code = main([str(argument) for argument in arguments])
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self):
        """Returns the exit code, negative where a signal ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])

    def wait_for(self, text, seconds=120):
        """Returns once the process has printed `text`."""
        end = time.monotonic() + seconds
        while text not in self.printed():
            assert time.monotonic() < end, self.printed()
            time.sleep(0.01)

    def printed(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number):
        os.kill(self.id, number)

    def kill_after(self, seconds):
        """Kills the process `seconds` from now, unless it ends before; returns the exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.id, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        self.send(signal.SIGKILL)
        return self.wait()


def run_alone(arguments, log, before=None):
    """Runs `tagi` in a process of its own; returns the exit code."""
    return Process(arguments, log, before).wait()


def digest(value, sha=None):
    """Returns a digest of all tensors in a batch."""
    sha = sha or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        sha.update(value.contiguous().cpu().numpy().tobytes())
    elif is_dataclass(value):
        for field in fields(value):
            digest(getattr(value, field.name), sha)
    return sha.hexdigest()[:16]


def note_batches(path):
    """Notes every batch that training begins, at once, where a kill cannot lose it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_start(self, batch, batch_index):
        row = [self.trainer.current_epoch, batch_index, self.global_step, digest(batch)]
        os.write(file, (json.dumps(row) + "\n").encode())

    Stage.on_train_batch_start = on_train_batch_start


def batches(*logs):
    """Returns the batches that processes began, by epoch and position; asserts that none was two things."""
    found = {}
    for log in logs:
        path = log.with_suffix(".batches")
        for line in path.read_text().splitlines() if path.exists() else []:
            epoch, position, step, content = json.loads(line)
            assert found.setdefault((epoch, position), (step, content)) == (step, content)
    return found


def figures(folder):
    """Returns every figure that a stage logged, by name and step, but those of speed; asserts that none was two."""
    found = {}
    for path in sorted((folder / "tensorboard").glob("events.out*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith(("perf/", "final/", "_hparams_", "val/samples")) or not value.HasField(
                    "tensor"
                ):
                    continue
                number = tuple(value.tensor.float_val) or value.tensor.tensor_content
                key = (value.tag, event.step)
                assert found.setdefault(key, number) == number, key
    return found


def difference(left, right, place=""):
    """Returns the first place where two states differ, None where they are the same bit for bit."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
        return None if same else place
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{place}: {sorted(map(str, left.keys() ^ right.keys()))}"
        return next((d for key in left if (d := difference(left[key], right[key], f"{place}.{key}"))), None)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return place
        pairs = enumerate(zip(left, right, strict=True))
        return next((d for number, (a, b) in pairs if (d := difference(a, b, f"{place}[{number}]"))), None)
    return None if left == right else f"{place}: {left!r}, {right!r}"


def final_state(run, stage):
    """Returns all of the last checkpoint that does not say where and when the run was made."""
    state = torch.load(run / stage / "checkpoints" / "last.ckpt", weights_only=True)
    del state["run"]
    for own in state["callbacks"].values():
        for key in [key for key in own if "path" in key or key in ("dirpath", "best_k_models")]:
            del own[key]
    # counts of batches that Lightning keeps for itself while a validation runs
    state["loops"] = {key: value for key, value in state["loops"]["fit_loop"].items() if ".val_loop." not in key}
    return state


def assert_same_run(run, whole, stage, logs, whole_log):
    """Asserts that a run that was stopped and resumed is the uninterrupted one in all that it left."""
    assert difference(final_state(run, stage), final_state(whole, stage)) is None
    assert difference(weights(run, stage), weights(whole, stage)) is None
    assert figures(run / stage) == figures(whole / stage)
    assert batches(*logs) == batches(whole_log)


def last_step(run, stage):
    """Returns the step that `last.ckpt` is of, None where there is none."""
    path = Path(run) / stage / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True, mmap=True)["global_step"] if path.exists() else None

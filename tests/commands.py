"""The commands that the Makefile composes, run in this process, on a task set made in a moment."""

import contextlib
import os
import shlex
import subprocess
from pathlib import Path

import yaml

from tagi_lightning.cli import main
from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain-backbone", "teachers", "pretrain", "align", "distill")
SYNTHETIC = {"train_instances": 6, "test_instances": 2, "documents_per_task": 1}


def make(*words, check=True):
    """Runs make as a user would from the project's folder, whatever make called these tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, env=kept, capture_output=True, text=True, check=check
    )


def tagi_commands(target, **variables):
    """Returns the arguments of every `tagi` that `make target` would call."""
    lines = make("--dry-run", target, *(f"{name}={value}" for name, value in variables.items())).stdout.splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/tagi ")]


def tagi(arguments):
    """Runs `tagi` in this process from the project's folder; returns the exit code."""
    with contextlib.chdir(ROOT):
        return main([str(argument) for argument in arguments])


def write_task_set(folder):
    """Writes the smallest synthetic task set, and beside it the configurations that say so."""
    write_synthetic(folder, SyntheticConfig(**SYNTHETIC))
    tasks = {"data": {"init_args": {"synthetic": SYNTHETIC}}}
    backbone = {"data": {"init_args": {"tasks": tasks["data"]}}}
    for name, values in (("tasks", tasks), ("backbone", backbone)):
        folder.with_name(f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def command(stage, run, data, *options, **variables):
    """Returns the arguments with which make runs one stage on a task set of `write_task_set`."""
    overlay = {"pretrain": [], "pretrain-backbone": [f"--config={data.with_name('backbone.yaml')}"]}
    extra = overlay.get(stage, [f"--config={data.with_name('tasks.yaml')}"])
    [arguments] = tagi_commands(stage, RUN=run, DATA=data, SIZE="tiny", **variables)
    return [*arguments, *extra, *options]

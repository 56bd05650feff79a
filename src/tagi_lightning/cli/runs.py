"""Run folders: what is finished, what can go on, and what was run (`run.json`)."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tagi_lightning.data.files import replace_text
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits, flatten, is_execution
from tagi_lightning.storage.run_layout import CONFIG_FILE, RUN_FILE

LOCK_FILE = ".lock"
RECORD = {"seconds": float, "starts": int, "global_step": int, "inputs": dict, "init_from": str | None}
"""What is computed with of a run.json, with its types."""

FREE_TRAINER_KEYS = frozenset(
    {
        "accelerator", "strategy", "devices", "num_nodes", "logger", "callbacks", "max_steps", "max_epochs",
        "min_steps", "min_epochs", "max_time", "log_every_n_steps", "enable_checkpointing", "enable_progress_bar",
        "enable_model_summary", "profiler", "default_root_dir", "detect_anomaly", "barebones", "benchmark",
        "num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches",
    }
)  # fmt: skip
"""Trainer options that may differ when a run goes on: they change where and how long it runs, not what is trained."""

REASONS = {
    "model.init_args.optimizer": "the steps made so far used the other optimizer or schedule",
    "model": "the weights and the steps made so far belong to the other model",
    "backbone": "the weights were trained on the other backbone",
    "tokenizer": "the weights were trained on the other tokens",
    "data": "the steps made so far read other batches",
    "data_folder": "the steps made so far read other batches",
    "setting": "the steps made so far read other instructions",
    "seed_everything": "order and draws of the steps made so far belong to the other seed",
    "trainer.accumulate_grad_batches": "the steps made so far had another effective batch",
    "trainer.precision": "the steps made so far were computed in the other precision",
    "trainer": "the steps made so far were made otherwise",
}
"""Why an option cannot change once a run has begun, by the longest beginning of its name."""


class RunFolderError(ValueError):
    """A run folder that holds something else; the message names what differs and what to do."""


def reason(key: str) -> str:
    """Returns why an option cannot change once a run has begun."""
    parts = key.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((REASONS[name] for name in names if name in REASONS), "it was the other when the run began")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> list[str]:
    """Lists the options of two configurations that differ and would change what is trained.

    Args:
        old: The configuration of the run folder.
        new: The present one.
        defaults: Value of an option that nobody gives, by dotted name: what an option meant before there was one.
    """
    flat_old, flat_new = dict(flatten(old)), dict(flatten(new))
    if defaults is not None:
        flat_old = {key: defaults[key] for key in flat_new.keys() - flat_old.keys() if key in defaults} | flat_old
    differing = []
    for key in sorted(flat_old.keys() | flat_new.keys()):
        parts = key.split(".")
        if is_execution(key) or (parts[0] == "trainer" and FREE_TRAINER_KEYS.intersection(parts[1:2])):
            continue
        if flat_old.get(key) != flat_new.get(key):
            differing.append(shortened(f"{key}: {flat_old.get(key)!r} there, {flat_new.get(key)!r} now"))
    return differing


def check_options(folder: Path, present: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> None:
    """Refuses options that are not those of a stage's folder and would change what is trained.

    Args:
        folder: The stage's folder, with the configuration that it was made with.
        present: The present configuration.
        defaults: Returns the value of an option that nobody gives, by dotted name; called where something differs.

    Raises:
        RunFolderError: If there are any, or the folder's configuration is damaged; the message says which, and why they
            cannot change.
    """
    old = read_mapping(folder / CONFIG_FILE, f"remove {folder} or give another RUN", RunFolderError)
    if differences(old, present) and (found := differences(old, present, defaults())):
        told = [f"{line} ({reason(line.split(':')[0])})" for line in found[:10]]
        raise RunFolderError(
            f"{folder} was made with another configuration:\n  " + "\n  ".join(told) + "\n"
            "Give another RUN, the same configuration, or remove that folder."
        )


def git_state(file: Path = Path(__file__)) -> dict[str, Any]:
    """Returns the commit of the checkout that tracks `file`, this package's by default, and whether it has changes.

    Both are null where no git repository tracks the file, as in an installed package.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def environment() -> dict[str, Any]:
    """Returns versions, processor threads and commit, as every run records them."""
    packages = ("tagi-lightning", "torch", "lightning", "transformers", "peft", "datasets", "torchmetrics")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"python": platform.python_version(), "versions": versions, "cpus": os.cpu_count(), **git_state()}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    replace_text(path, json.dumps(values, indent=2, default=str) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in `folder`; the system ends the lock with the process, however it ends.

    Raises:
        RunFolderError: If another process is training there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as stream:
        try:
            # not flock, whose lock a loader's workers would hold on to when this process is killed
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunFolderError(
                f"{folder} is in use by another process ({holder}): wait for it, end it, or give another RUN"
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        yield


def read_run(folder: Path) -> dict[str, Any]:
    """Returns a stage's run.json, empty where there is none.

    Raises:
        RunFolderError: If the file is not JSON, or no record of a run.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    advice = f"remove {folder} or give another RUN"
    values = read_mapping(path, advice, RunFolderError)
    if wrong := [key for key in RECORD if key in values and not fits(values[key], RECORD[key])]:
        raise RunFolderError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are); {advice}")
    return values


class RunRecord:
    """Writes a stage's run.json at its start and end."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Starts the record of the stage in `folder`; time spent by earlier, interrupted starts is added up."""
        self.path = folder / RUN_FILE
        earlier = read_run(folder)
        self._earlier_seconds = float(earlier.get("seconds", 0.0))
        self._start = time.monotonic()
        self.values: dict[str, Any] = {
            "status": "running",
            "command": " ".join(["tagi", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "starts": int(earlier.get("starts", 0)) + 1,
            **facts,
            **environment(),
        }
        write_json(self.path, self.values)

    def finish(self, status: str, facts: Mapping[str, Any]) -> None:
        """Records how the stage ended."""
        seconds = round(self._earlier_seconds + time.monotonic() - self._start, 1)
        self.values |= {"status": status, "seconds": seconds, **facts}
        write_json(self.path, self.values)

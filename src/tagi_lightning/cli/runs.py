"""Run folders: what is finished, what can go on, and what was run (`run.json`)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"

FREE_TRAINER_KEYS = frozenset(
    {
        "accelerator", "strategy", "devices", "num_nodes", "logger", "callbacks", "max_steps", "max_epochs",
        "min_steps", "min_epochs", "max_time", "log_every_n_steps", "enable_checkpointing", "enable_progress_bar",
        "enable_model_summary", "profiler", "default_root_dir", "detect_anomaly", "barebones", "benchmark",
        "num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches",
    }
)  # fmt: skip
"""Trainer options that may differ when a run goes on: they change where and how long it runs, not what is trained."""


FREE_KEYS = frozenset({"run", "config", "ckpt_path", "corpora", "allow_missing", "overwrite"})
"""Top-level options that may differ: what they name stands again where it is used."""

FREE_BACKBONE_KEYS = frozenset({"backbone.compile", "backbone.gradient_checkpointing"})
"""Options of the backbone that may differ: they change how it is computed, not what is trained."""


class RunFolderError(ValueError):
    """A run folder that holds something else; the message names what differs and what to do."""


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and leaves of nested mappings."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists the options of two configurations that differ and would change what is trained."""
    flat_old, flat_new = dict(flatten(old)), dict(flatten(new))
    differing = []
    for key in sorted(flat_old.keys() | flat_new.keys()):
        parts = key.split(".")
        if key in FREE_BACKBONE_KEYS:
            continue
        if parts[0] in FREE_KEYS or (parts[0] == "trainer" and parts[1] in FREE_TRAINER_KEYS):
            continue
        if flat_old.get(key) != flat_new.get(key):
            differing.append(f"{key}: {flat_old.get(key)!r} there, {flat_new.get(key)!r} now")
    return differing


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


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON to a temporary file and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_run(folder: Path) -> dict[str, Any]:
    """Returns a stage's run.json, empty where there is none.

    Raises:
        RunFolderError: If the file is not JSON.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove {folder} or give another RUN") from error
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

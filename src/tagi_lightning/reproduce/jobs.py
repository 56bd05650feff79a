"""A job: one `tagi fit` or `tagi evaluate`, with what it needs and what shows that it was done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.files import replace_text
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.options import fits
from tagi_lightning.reproduce.configurations import select

LOGS = "logs"
"""Folder of the jobs' output and records, in their run folder."""

RECORD = {"digest": str, "seconds": float, "steps": int | None}
"""What a job's record holds that is read again, with its types."""


@dataclass(frozen=True)
class Job:
    """One command of the grid.

    Attributes:
        name: What lines and messages call it; unique in a plan.
        kind: The stage, or evaluate, or data: jobs of a kind take about as long.
        run: The run folder that it writes to.
        command: Words after `tagi`.
        digest: Stands for its whole configuration.
        needs: Names of the jobs whose results it reads.
        results: Files and folders that are there once it is done.
        files: Files it reads that are written before it starts, with their text.
        config: The merged configuration.
        system: The row's folder name, or shared.
    """

    name: str
    kind: str
    run: Path
    command: tuple[str, ...]
    digest: str
    needs: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    system: str = "shared"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.run / LOGS / f"{self.kind}.log"

    @property
    def record(self) -> Path:
        """Where it is written down that it was done."""
        return self.run / LOGS / f"{self.kind}.json"

    @property
    def steps(self) -> int | None:
        """Steps of training; None for what trains nothing.

        Raises:
            ValueError: If the configuration has another value than a whole number there.
        """
        steps: int | None = None if self.kind == "evaluate" else select(self.config, "trainer.max_steps")
        if not fits(steps, int | None):
            raise ValueError(f"{self.name}: trainer.max_steps must be a whole number")
        return steps

    def is_done(self) -> bool:
        """Whether the very same job was finished earlier and its results are there."""
        return read_record(self.record).get("digest") == self.digest and all(path.exists() for path in self.results)

    def prepare(self) -> None:
        """Writes the files that it reads, and forgets an earlier end."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        for path, text in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def finish(self, seconds: float) -> None:
        """Writes down that it was done."""
        command = shlex.join(["tagi", *self.command])
        values = {"digest": self.digest, "seconds": round(seconds, 1), "steps": self.steps, "command": command}
        replace_text(self.record, json.dumps(values, indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Returns what was written down at a job's end, empty where it never ended well.

    Raises:
        ValueError: If that is damaged.
    """
    if not path.is_file():
        return {}
    advice = "remove it, and the job looks for itself what is done"
    values = read_mapping(path, advice)
    if wrong := [key for key, kind in RECORD.items() if not fits(values.get(key), kind)]:
        raise ValueError(f"{path} is damaged ({', '.join(wrong)} cannot be what they are); {advice}")
    return values

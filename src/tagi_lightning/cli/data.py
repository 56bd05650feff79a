"""`tagi data`: makes the synthetic task set, or fetches Super-NaturalInstructions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import jsonargparse


def data(taskset: Literal["synthetic", "sni"], folder: str, repository: str | None = None, seed: int = 0) -> None:
    """Make or fetch a task set.

    Args:
        taskset: synthetic writes generated tasks; sni clones the official repository (shallow, tasks and splits only).
        folder: Where to put it.
        repository: For sni, another repository than the official one.
        seed: For synthetic, the seed of the tasks.
    """
    from tagi_lightning.data.fetch import REPOSITORY, fetch_sni
    from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic

    if taskset == "synthetic":
        write_synthetic(Path(folder), SyntheticConfig(seed=seed))
    else:
        fetch_sni(Path(folder), repository or REPOSITORY)
    print(f"{taskset} tasks are in {folder}")


def main(args: list[str]) -> int:
    """Runs `tagi data`; returns the exit code."""
    from tagi_lightning.data.report import DataError

    try:
        jsonargparse.auto_cli(data, args=args, as_positional=False, prog="tagi data", allow_abbrev=False)
    except (DataError, OSError) as error:
        print(f"tagi data: {error}", file=sys.stderr)
        return 1
    return 0

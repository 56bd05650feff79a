"""`tagi data`: makes the synthetic task set, or fetches Super-NaturalInstructions or P3."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import jsonargparse


def data(taskset: Literal["synthetic", "sni", "p3"], folder: str, repository: str | None = None, seed: int = 0) -> None:
    """Make or fetch a task set.

    Args:
        taskset: synthetic writes generated tasks; sni clones the official repository (shallow, tasks and splits only);
            p3 clones promptsource's templates to FOLDER_templates and fetches the rows from the Hugging Face hub.
        folder: Where to put it.
        repository: For sni and p3, another repository than the official one.
        seed: For synthetic, the seed of the tasks.
    """
    from tagi_lightning.data.fetch import PROMPTSOURCE, REPOSITORY, fetch_sni, fetch_templates
    from tagi_lightning.data.p3.fetch import fetch_rows
    from tagi_lightning.data.p3.lists import test_datasets, train_datasets
    from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic

    if taskset == "synthetic":
        write_synthetic(Path(folder), SyntheticConfig(seed=seed))
    elif taskset == "sni":
        fetch_sni(Path(folder), repository or REPOSITORY)
    else:
        templates = Path(f"{folder}_templates")
        if not templates.exists():
            fetch_templates(templates, repository or PROMPTSOURCE)
        fetch_rows(Path(folder), train_datasets(None), ("train",))
        fetch_rows(Path(folder), test_datasets(), ("validation",))
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

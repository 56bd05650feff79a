"""Fetching the rows of T0's data sets from the Hugging Face hub, in the parquet form it keeps of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import disable_progress_bars, load_dataset

from tagi_lightning.data.p3.lists import P3Dataset
from tagi_lightning.data.report import DataReport

HUB = "hf://datasets/{}@~parquet"
"""Where the hub keeps a data set as parquet files, <configuration>/<split>/*.parquet."""


def fetch_rows(folder: Path, datasets: Sequence[P3Dataset], splits: Sequence[str], hub: str = HUB) -> None:
    """Writes `FOLDER/<data set>/<split>.parquet` where it is absent; a file appears whole or not at all.

    Args:
        folder: Folder of rows.
        datasets: Data sets to fetch.
        splits: Splits to fetch, train or validation.
        hub: Address of a data set's parquet files, {} standing for its id.

    Raises:
        DataError: If any could not be fetched, after all others were; one message names them with the reasons.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    report = DataReport("the Hugging Face hub")
    for dataset in datasets:
        if not dataset.hub:
            report.error("data set to be requested from its authors", dataset.name)
            continue
        name, configuration = dataset.hub
        for split in splits:
            target = folder / dataset.name / f"{split}.parquet"
            if target.exists():
                continue
            files = f"{hub.format(name)}/{configuration}/{dataset.hub_splits.get(split, split)}/*.parquet"
            try:
                rows = load_dataset("parquet", data_files=files, split="train")
            except (OSError, ValueError) as error:
                report.error("rows that cannot be fetched", f"{dataset.name}, {split} ({' '.join(str(error).split())})")
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_suffix(".unfinished")
            rows.to_parquet(str(unfinished))
            unfinished.rename(target)
    report.raise_if_errors("Put their rows into the folder as <data set>/<split>.parquet or .jsonl, or go on without.")

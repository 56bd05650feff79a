"""Training curves, from the TensorBoard files of a stage."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from tagi_lightning.report.columns import Cell

CURVES = {"train/loss": "training loss", "val/rougeL": "validation ROUGE-L"}
"""Scalars that are drawn, with what axes call them."""

Curve = list[tuple[int, float]]
"""Steps, counted from 1, and values."""


def read_curves(stage: Path) -> dict[str, Curve]:
    """Returns the curves that a stage left; where it was interrupted and went on, a later start's values count."""
    folder = stage / "tensorboard"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in CURVES.keys() & set(events.Tags()["scalars"]):
        ordered = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        found[tag] = sorted({event.step + 1: event.value for event in ordered}.items())
    return found


def mean_curves(cell: Cell) -> dict[str, Curve]:
    """Returns the curves of a row's last stage, averaged over its seeds at the steps that all of them have."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    trained = [result.trainings[-1].folder for result in cell.results.values() if result.trainings]
    for stage in trained:
        for tag, curve in read_curves(stage).items():
            for step, value in curve:
                values[tag][step].append(value)
    means = {
        tag: [(step, fmean(found)) for step, found in sorted(steps.items()) if len(found) == len(trained)]
        for tag, steps in values.items()
    }
    return {tag: curve for tag, curve in means.items() if curve}

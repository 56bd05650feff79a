"""The configuration of a stage: which files it is made of, in the Makefile's order, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits
from tagi_lightning.reproduce.systems import merge

SOURCES = {"pretrain-backbone": "-backbone", "pretrain": "-text"}
"""Ending of the data configuration's name where a stage reads something else than tasks."""


def stage_files(experiments: Path, stage: str, taskset: str, size: str, trainer: str) -> tuple[Path, ...]:
    """Returns the configuration files of a stage: data, stage, what task set and size change, trainer."""
    own = (f"stages/{taskset}/{stage}", f"sizes/{size}", f"sizes/{size}/{stage}", f"sizes/{size}/{taskset}/{stage}")
    names = (f"data/{taskset}{SOURCES.get(stage, '')}", f"stages/{stage}", *own, f"trainers/{trainer}")
    files = [experiments / f"{name}.yaml" for name in names]
    return tuple(file for file in files if file.is_file())


def known_names(experiments: Path, kind: str) -> list[str]:
    """Returns the names that can be chosen among the files of one kind: data, sizes, stages, systems or trainers."""
    names = sorted(path.stem for path in (experiments / kind).glob("*.yaml"))
    endings = tuple(SOURCES.values()) if kind == "data" else ()
    return [name for name in names if not name.endswith(endings)]


def check_choice(experiments: Path, kind: str, option: str, value: str) -> None:
    """Refuses a name that no file of its kind has.

    Args:
        experiments: Folder of the experiment files.
        kind: Their kind.
        option: What the message calls the name.
        value: The name.

    Raises:
        ValueError: If it is unknown; the message lists the choices.
    """
    if value not in (known := known_names(experiments, kind)):
        raise ValueError(f"{option} {shortened(repr(value))} is unknown; choose from {', '.join(known)}")


def check_choices(experiments: Path, taskset: str, size: str, trainer: str) -> None:
    """Refuses names that no configuration has.

    Raises:
        ValueError: If one is unknown; the message lists the choices.
    """
    chosen = {"taskset": ("data", taskset), "size": ("sizes", size), "trainer": ("trainers", trainer)}
    for option, (kind, value) in chosen.items():
        check_choice(experiments, kind, option, value)


def on_cpu(experiments: Path, trainer: str) -> bool:
    """Whether a trainer's configuration computes on the processor."""
    return bool(select(read_mapping(experiments / "trainers" / f"{trainer}.yaml"), "trainer.accelerator") == "cpu")


@cache
def merged(files: tuple[Path, ...]) -> dict[str, Any]:
    """Returns what the files say together, later ones winning; references to other options stay as written.

    Raises:
        ValueError: If one is damaged.
    """
    values: dict[str, Any] = {}
    for file in files:
        values = merge(values, read_mapping(file))
    return values


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of dotted names as nested mappings."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        values = merge(values, value)
    return values


def select(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Returns the option of a dotted name, `default` where it is absent or null."""
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def examples_seen(config: Mapping[str, Any]) -> int:
    """Returns the examples that a stage on tasks sees: steps times batch.

    Raises:
        ValueError: If the configuration has another value than a whole number there.
    """
    names = ("trainer.max_steps", "data.init_args.tasks_per_batch", "data.init_args.instances_per_task")
    counts = {name: select(config, name, 4) for name in names}
    counts["trainer.accumulate_grad_batches"] = select(config, "trainer.accumulate_grad_batches", 1)
    if wrong := [name for name, count in counts.items() if not fits(count, int)]:
        raise ValueError(f"{', '.join(wrong)} must be whole numbers")
    return prod(counts.values())


def needs_teachers(config: Mapping[str, Any]) -> bool:
    """Whether distill, configured like this, reads the categories' teachers."""
    loss, settings = "model.init_args.loss", select(config, "model.init_args", {})
    if settings.get("teachers") == "none":
        return False
    distils = select(config, f"{loss}.lambda1", 5.0) and settings.get("logits_teacher", "category") == "category"
    generates = select(config, "model.init_args.tagi.hypernetwork.enabled", True)
    return bool(distils or (generates and select(config, f"{loss}.lambda2", "sigmoid")))

"""`tagi cp`: copies an experiment file, or a folder of them, to be changed."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tagi_lightning.cli.experiment_files import builtin_experiments, names


def copy(name: str, target: Path) -> Path:
    """Copies an experiment file, or the folder of a kind, and returns where it is.

    Args:
        name: A name that `tagi ls` prints, with or without .yaml, or a folder such as systems.
        target: Where to; into it where it is a folder.

    Raises:
        ValueError: If there is no experiment file of that name.
        FileExistsError: If the copy's place is taken.
    """
    known = names()
    file = name if name in known else f"{name}.yaml"
    folder = any(other.startswith(f"{name}/") for other in known)
    if file not in known and not folder:
        kind = name.split("/")[0]
        near = [other for other in known if other.startswith(f"{kind}/")] or known
        raise ValueError(f"there is no experiment file {name!r}; choose from {', '.join(near)}")
    source = builtin_experiments() / (name if folder else file)
    place = target / source.name if target.is_dir() else target
    if place.exists():
        raise FileExistsError(f"{place} is already there; remove it or choose another place")
    place.parent.mkdir(parents=True, exist_ok=True)
    if folder:
        shutil.copytree(source, place, ignore=lambda _, found: [entry for entry in found if entry.startswith("_")])
    else:
        shutil.copyfile(source, place)
    return place


def parser() -> argparse.ArgumentParser:
    """Returns what reads the options."""
    parser = argparse.ArgumentParser(
        prog="tagi cp", description="Copy an experiment file that comes with the package.", allow_abbrev=False
    )
    parser.add_argument("name", help="a name that `tagi ls` prints, e.g. systems/tagi-lora.yaml, or a folder of them")
    parser.add_argument("target", type=Path, help="file to write, or a folder to put it into")
    return parser


def main(args: list[str]) -> int:
    """Runs `tagi cp`; returns the exit code."""
    options = parser().parse_args(args)
    print(copy(options.name, options.target))
    return 0

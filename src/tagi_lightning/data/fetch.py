"""Fetching the official Super-NaturalInstructions tasks, and P3's templates, with git."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tagi_lightning.data.report import DataError

REPOSITORY = "https://github.com/allenai/natural-instructions"
"""Where the authors of Super-NaturalInstructions publish it."""

PROMPTSOURCE = "https://github.com/bigscience-workshop/promptsource"
"""Where the authors of P3 publish its templates."""


def fetch_sni(destination: Path, repository: str = REPOSITORY) -> None:
    """Clones the newest tasks and split lists, without history, to a new folder.

    The clone is made beside `destination` and takes its name only once it is whole.

    Args:
        destination: Folder to make; it must not exist or be empty.
        repository: Any address that git can clone.

    Raises:
        DataError: If the destination holds something, git is absent, the clone fails or holds no task set.
    """
    with _clone(destination, repository, "tasks", "splits") as clone:
        if not (clone / "tasks").is_dir() or not (clone / "splits" / "default").is_dir():
            raise DataError(f"{repository} has no tasks/ and splits/default/: it is no Super-NaturalInstructions")
        clone.rename(destination)


def fetch_templates(destination: Path, repository: str = PROMPTSOURCE) -> None:
    """Clones promptsource's templates, without history, to a new folder of <data set>/.../templates.yaml.

    Args:
        destination: Folder to make; it must not exist or be empty.
        repository: Any address that git can clone.

    Raises:
        DataError: If the destination holds something, git is absent, the clone fails or holds no templates.
    """
    with _clone(destination, repository, "promptsource/templates") as clone:
        templates = clone / "promptsource" / "templates"
        if not templates.is_dir():
            raise DataError(f"{repository} has no promptsource/templates/: it is not promptsource")
        templates.rename(destination)


@contextmanager
def _clone(destination: Path, repository: str, *folders: str) -> Iterator[Path]:
    """Gives a shallow clone of some of a repository's folders, beside `destination` and gone afterwards."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataError(f"{destination} is already there: use it, name another with DATA=FOLDER, or remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as temporary:
        clone = Path(temporary, "clone")
        _git("clone", "--depth=1", "--filter=blob:none", "--sparse", "--", repository, str(clone))
        _git("-C", str(clone), "sparse-checkout", "set", *folders)
        yield clone


def _git(*arguments: str) -> None:
    # On a terminal git shows its progress, and its errors, itself.
    stderr = None if sys.stderr.isatty() else subprocess.PIPE
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *arguments], stderr=stderr, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise DataError("git is not installed: install it, or download the repository and name it by DATA") from None
    if done.returncode:
        reason = (done.stderr or "its message stands above").strip()
        raise DataError(
            f"`git {' '.join(arguments)}` failed with status {done.returncode}: {reason}\nWithout a connection, get "
            "the repository on another machine and name its folder: DATA=FOLDER (--data_folder)"
        )

"""The experiment files that come with the package: where they are, their names, what each is."""

from __future__ import annotations

import re
from pathlib import Path

import tagi_lightning


def builtin_experiments() -> Path:
    """Returns the folder of the experiment files: in the package where it is installed, else in the checkout."""
    package = Path(tagi_lightning.__file__).parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parents[1] / "experiments"


def experiments_folder(named: str | None) -> Path:
    """Returns the folder of experiment files to use.

    Args:
        named: The folder; None for `experiments` in the present one, or those of the package where it has none.
    """
    if named is not None:
        return Path(named)
    here = Path("experiments")
    return here if here.is_dir() else builtin_experiments()


def configurations_folder() -> Path:
    """Returns `experiments` in the present folder where that holds stages, else the one of the package."""
    here = experiments_folder(None)
    return here if (here / "stages").is_dir() else builtin_experiments()


def names(kind: str = "") -> list[str]:
    """Returns the files' names, e.g. systems/tagi.yaml, in order.

    Args:
        kind: Only of this folder; all where it is empty.

    Raises:
        ValueError: If there is no such folder.
    """
    root = builtin_experiments()
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    kinds = sorted({name.split("/")[0] for name in found})
    if kind and kind not in kinds:
        raise ValueError(f"there are no experiment files of kind {kind!r}; choose from {', '.join(kinds)}")
    return [name for name in found if not kind or name.startswith(f"{kind}/")]


def summary(name: str) -> str:
    """Returns the first sentence of a file's opening comment; empty where it has none."""
    text = (builtin_experiments() / name).read_text(encoding="utf-8")
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    # "eq. 4" and the like end no sentence
    return re.split(r"\.(?: (?=[A-Z])|$)", " ".join(comment))[0]

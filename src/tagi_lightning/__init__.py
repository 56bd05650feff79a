"""TAGI: a hypernetwork reads a task's instruction once and writes the LoRA adapter that makes a frozen LM solve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.model import TagiModel

__version__ = "0.1.0"
__all__ = ["InstructedModel", "TagiModel", "__version__", "load"]


def load(name: str | Path, backbone: str | None = None, **options: Any) -> InstructedModel:
    """Loads a trained model: strings in, adapters and strings out. See `InstructedModel.load`.

    Args:
        name: Model folder, e.g. runs/demo/model, or id on the Hugging Face hub.
        backbone: Where the backbone lies; None for where it lay in training.
        options: `dtype` of the backbone, `device`, and `hub` options.
    """
    from tagi_lightning.inference.instructed import InstructedModel

    return InstructedModel.load(name, backbone, **options)


def __getattr__(name: str) -> Any:
    # importing the package loads nothing heavy
    if name == "InstructedModel":
        from tagi_lightning.inference.instructed import InstructedModel

        return InstructedModel
    if name == "TagiModel":
        from tagi_lightning.model import TagiModel

        return TagiModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

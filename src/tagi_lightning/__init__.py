"""TAGI: a hypernetwork reads a task's instruction once and writes the LoRA adapter that makes a frozen LM solve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagi_lightning.backbones.loading import Dtype
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.model import TagiModel
    from tagi_lightning.storage.hub import HubOptions

__version__ = "0.1.0"
__all__ = ["InstructedModel", "TagiModel", "__version__", "load"]


def load(
    name: str | Path,
    backbone: str | None = None,
    dtype: Dtype = "float32",
    device: str = "cpu",
    hub: HubOptions | None = None,
) -> InstructedModel:
    """Loads a trained model: strings in, adapters and strings out.

    Args:
        name: Model folder, e.g. runs/demo/model, or id on the Hugging Face hub.
        backbone: Where the backbone lies; None for where it lay in training.
        dtype: Type the backbone is stored in: float32, bfloat16 or float16; adapters are saved from float32 alone.
        device: Where to compute.
        hub: Where on the hub to look, a `storage.hub.HubOptions`; None for the main branch and the usual cache.

    Raises:
        ModelFolderError: If there is no such model, it is damaged, tells no prompts or reads demonstrations apart, or
            its backbone is another one or not there.
        ValueError: If what its run recorded is damaged.
    """
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.storage.hub import HubOptions

    return InstructedModel.load(name, backbone, dtype, device, hub or HubOptions())


def __getattr__(name: str) -> Any:
    # importing the package loads nothing heavy
    if name == "InstructedModel":
        from tagi_lightning.inference.instructed import InstructedModel

        return InstructedModel
    if name == "TagiModel":
        from tagi_lightning.model import TagiModel

        return TagiModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""torch.compile of a backbone's teacher-forced forward pass."""

from __future__ import annotations

import os
import shutil

from torch._functorch import config as functorch_config

from tagi_lightning.backbones.base import Backbone


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on every device."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))


def compile_forward(backbone: Backbone) -> None:
    """Compiles calls of `backbone` in place; its weights keep their names, and its other methods run as they are.

    Lengths and batch sizes are symbols from the first call on, so that batches of other lengths compile nothing again.
    """
    # a compiled backward pass may otherwise reuse its buffers, and the gradient of each loss term is logged by itself
    functorch_config.donated_buffer = False
    backbone.compile(dynamic=True)

"""Gradient checkpointing of a model's blocks: activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Lets each block of `model` keep only its inputs for the backward pass.

    Hugging Face's own switch follows the module's mode and drops caches of keys and values that it is given. Here the
    mode carries no meaning: a block is checkpointed wherever gradients are recorded and no cache is passed.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = partial(_run, module.forward)  # type: ignore[method-assign]


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled() and kwargs.get("past_key_values") is None:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)

"""One task's LoRA added to the backbone's weights for as long as a block lasts: inputs pay nothing for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tagi_lightning.adapter import PreparedAdapter

MERGED_TYPES = (torch.float32, torch.float64)
"""Types of weights that an update is added to."""


class WeightsLock:
    """A lock around everything that reads or changes a model's weights; a copy of the model has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightsLock, ()


@contextmanager
def merge(model: nn.Module, adapter: PreparedAdapter, lock: WeightsLock) -> Iterator[PreparedAdapter]:
    """Adds the LoRA of `adapter` to the weights of `model`, and puts the original tensors back at the end.

    Weights that are not float32 or float64 stay as they are, since rounding would lose most of the update.

    Args:
        model: The Hugging Face model whose module paths are the adapter's sites.
        adapter: The adapter of one task.
        lock: Held until the weights are back.

    Yields:
        What is left to be applied: the adapter without its LoRA, or all of it where nothing was merged.

    Raises:
        ValueError: If the adapter is of several tasks.
    """
    lora = adapter.lora
    if lora is not None and lora.num_tasks != 1:
        raise ValueError(f"an adapter of one task can be merged, got {lora.num_tasks}")
    sites = lora.a if lora is not None else {}
    found = {site: getattr(model.get_submodule(site), "weight", None) for site in sites}
    weights = {site: weight for site, weight in found.items() if weight is not None and weight.dtype in MERGED_TYPES}
    if lora is None or len(weights) < len(sites):
        yield adapter
        return
    with lock:
        originals = {site: weight.data for site, weight in weights.items()}
        try:
            for site, original in originals.items():
                a, b = lora.a[site][0].to(original.dtype), lora.b[site][0].to(original.dtype)
                weights[site].data = torch.addmm(original, b, a, alpha=lora.scale)
            yield replace(adapter, lora=None)
        finally:
            for site, original in originals.items():
                weights[site].data = original

"""Prepared adapters kept by instruction, so that an instruction seen before costs nothing."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import torch

from tagi_lightning.adapter import PreparedAdapter, join
from tagi_lightning.data.batch import Tokens
from tagi_lightning.model import TagiModel

Key = tuple[str, str, str]


class AdapterCache:
    """A bounded cache: the adapters that were not asked for the longest leave first. Safe for several threads.

    An adapter is kept under the digests of its instruction's tokens and of the model's weights, and its type, so that
    training the model any further makes every earlier adapter unfindable.

    Attributes:
        hits: Instructions that were found.
        misses: Instructions that had to be prepared.
    """

    def __init__(self, model: TagiModel, max_bytes: int = 2**30, dtype: torch.dtype | None = None) -> None:
        """Creates an empty cache.

        Args:
            model: Makes the adapters.
            max_bytes: Bytes of all adapters together at most; one that is larger alone is made and not kept.
            dtype: Type the adapters are kept in; None keeps each tensor's own.

        Raises:
            ValueError: If `max_bytes` is negative.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.model, self.max_bytes, self.dtype = model, max_bytes, dtype
        self.hits = self.misses = self.num_bytes = 0
        self._adapters: OrderedDict[Key, PreparedAdapter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._adapters)

    def __call__(self, instruction: Tokens) -> PreparedAdapter:
        """Returns the adapters of T instructions [T, I]; those not kept are prepared together, in one pass."""
        digest = self.model.digest()
        rows = zip(instruction.ids, instruction.mask, strict=True)
        keys = [self._key(ids[mask.bool()], digest) for ids, mask in rows]
        with self._lock:
            found = {key: self._adapters[key] for key in keys if key in self._adapters}
            for key in found:
                self._adapters.move_to_end(key)
            self.hits += sum(key in found for key in keys)
            self.misses += sum(key not in found for key in keys)
        if missing := [keys.index(key) for key in dict.fromkeys(keys) if key not in found]:
            prepared = self.model.prepare(instruction.map(lambda rows: rows[missing]), self.dtype)
            for place, row in enumerate(missing):
                found[keys[row]] = prepared.select(place)
                self._keep(keys[row], found[keys[row]])
        return join([found[key] for key in keys])

    def _key(self, ids: torch.Tensor, digest: str) -> Key:
        return hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest(), digest, str(self.dtype)

    def _keep(self, key: Key, adapter: PreparedAdapter) -> None:
        with self._lock:
            if key in self._adapters or adapter.num_bytes > self.max_bytes:
                return
            self._adapters[key] = adapter
            self.num_bytes += adapter.num_bytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._adapters.popitem(last=False)
                self.num_bytes -= oldest.num_bytes

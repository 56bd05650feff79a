"""The frozen backbone's states over instructions, kept in memory: tasks number in hundreds, steps in thousands."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import torch

from tagi_lightning.adapter import InstructionStates, PreparedAdapter, join
from tagi_lightning.data.batch import Tokens
from tagi_lightning.model import TagiModel


class InstructionStatesCache:
    """Encodes each instruction once, and forgets those used longest ago where all outgrow a number of bytes.

    Every instruction is encoded alone and without padding, so its states do not depend on the batch it is first seen
    in, and an interrupted run goes on with the same bits. They differ from those of a padded batch by rounding alone
    (1e-5 of their largest entry in float32).
    """

    def __init__(self, model: TagiModel, max_bytes: int, memory: bool = True) -> None:
        """Starts empty.

        Args:
            model: The model whose frozen backbone reads the instructions.
            max_bytes: Size of all states together at most.
            memory: Whether what the memory needs is kept, too; see `TagiModel.encode_instructions`.

        Raises:
            ValueError: If some weight of the backbone is trained, or demonstrations are read, which are never the same.
        """
        if any(parameter.requires_grad for parameter in model.backbone.parameters()):
            raise ValueError("instruction states change while the backbone trains: set instruction_cache_mb=0")
        if model.config.memory_of == "demonstrations":
            raise ValueError("every batch draws demonstrations of its own: set instruction_cache_mb=0")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._encode = partial(model.encode_instructions, memory=memory)
        self._entries: OrderedDict[tuple[int, ...], PreparedAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def encode(self, instruction: Tokens) -> InstructionStates:
        """Returns the states over instructions [T, I], zero at padding, as `TagiModel.encode_instructions` does."""
        lengths, rows = instruction.mask.sum(-1).tolist(), instruction.ids.tolist()
        found = [self._entry(tuple(row[:length]), instruction) for row, length in zip(rows, lengths, strict=True)]
        states = join(found).memory
        assert states is not None
        return states if states.tokens is None else replace(states, tokens=instruction)

    def _entry(self, ids: tuple[int, ...], like: Tokens) -> PreparedAdapter:
        if ids not in self._entries:
            row = like.ids.new_tensor([ids])
            with torch.no_grad():
                self._entries[ids] = PreparedAdapter(memory=self._encode(Tokens(row, torch.ones_like(row))))
            self.num_bytes += self._entries[ids].num_bytes
        self._entries.move_to_end(ids)
        entry = self._entries[ids]
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
        return entry

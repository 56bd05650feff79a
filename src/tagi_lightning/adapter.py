"""What an instruction becomes: the value that conditions the backbone, passed as an argument and held by no module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagi_lightning.fusion import FusionStates
from tagi_lightning.lora import LoraWeights


@dataclass(frozen=True)
class InstructionStates:
    """Hidden states of the frozen backbone over T instructions, the paper's I.

    Attributes:
        states: Final hidden states [T, I, d].
        mask: 1 for tokens, 0 for padding [T, I].
        keys_values: The decoder layers' cross-attention keys and values of the states, each [T, H, I, head size];
            empty until a backbone has prepared them.
    """

    states: Tensor
    mask: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()

    def detach(self, dtype: torch.dtype | None = None) -> InstructionStates:
        """Returns a copy cut off from the graph, in `dtype` if one is given."""
        pairs = tuple(
            (keys.detach().to(dtype or keys.dtype), values.detach().to(dtype or values.dtype))
            for keys, values in self.keys_values
        )
        return InstructionStates(self.states.detach().to(dtype or self.states.dtype), self.mask, pairs)


@dataclass(frozen=True)
class TaskAdapter:
    """Everything T instructions contribute to the backbone; differentiable.

    Attributes:
        lora: Generated LoRA, or None.
        fusion: Keys and values of the encoder fusion, or None.
        memory: Instruction states prepended to the decoder's memory, or None.
    """

    lora: LoraWeights | None = None
    fusion: FusionStates | None = None
    memory: InstructionStates | None = None


@dataclass(frozen=True)
class PreparedAdapter(TaskAdapter):
    """A cached `TaskAdapter`: detached, in one dtype, and marked with the model that made it.

    Attributes:
        model_digest: Digest of the weights that generated it; a model refuses a cache that another made.
    """

    model_digest: str = ""

"""What an instruction becomes: the value that conditions the backbone, passed as an argument and held by no module."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """

    states: Tensor
    mask: Tensor

    def to_memory(self, inputs: Tensor, input_mask: Tensor, task_index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the decoder's memory [I ; F_L] [B, I+S, d] and its mask [B, I+S]."""
        states = self.states.to(inputs.dtype)[task_index]
        return torch.cat([states, inputs], dim=1), torch.cat([self.mask[task_index], input_mask], dim=1)


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


def without_lora(adapter: TaskAdapter) -> TaskAdapter:
    """Returns `adapter` with fusion and memory alone."""
    return replace(adapter, lora=None)

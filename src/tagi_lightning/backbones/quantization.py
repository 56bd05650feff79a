"""8-bit storage of a frozen backbone: each output channel of a linear layer as int8 with one scale.

The weights are brought back to the type of the input in every product, forward and backward, and only the 8-bit ones
are kept for the backward pass. Embeddings, norms and the output layer stay as they are.
Shapes: S tokens, in and out features of one layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class _Int8Product(torch.autograd.Function):
    """x W^T with W = scale * int8; gradients flow to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None


class Int8Linear(nn.Module):
    """A frozen linear layer whose weight is stored as int8 [out, in] with one scale an output channel [out].

    Attributes:
        in_features: Width of its input.
        out_features: Width of its output.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Rounds the weight of `linear` to 255 levels, symmetric around zero, up to its channel's largest entry."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        # parameters rather than buffers, so that checkpoints leave them out with the other frozen weights
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output over x [..., in], in the type of x, or of autocast where that is on."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        output: Tensor = _Int8Product.apply(x, self.weight, self.scale)
        return output if self.bias is None else output + self.bias.to(output.dtype)


def quantize_linears(model: PreTrainedModel) -> None:
    """Replaces every linear layer of `model` except its output layer by an `Int8Linear`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            model.set_submodule(name, Int8Linear(module))

"""Cost of reading an instruction once: measured, and by the paper's formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def count_flops(fn: Callable[[], object]) -> int:
    """Returns the floating-point operations of one call of `fn`, a multiply-add counting as two.

    Counted are matrix products, convolutions and attention, forward and backward alike; element-wise work,
    softmax, norms and embedding look-ups are not. PyTorch's counter has no formula for its fused attention
    on the CPU and would take it for free, so a model that runs there has to run inside `eager_attention`.

    Args:
        fn: Called once, under whatever gradient mode is on; what it returns is dropped.

    Raises:
        RuntimeError: If `fn` runs fused attention on the CPU.
    """
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _refuse_fused_attention}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        fn()
    return int(counter.get_total_flops())


def _refuse_fused_attention(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("fused attention on the CPU cannot be counted: count inside `with eager_attention(model)`")


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Runs `model`, and any other attention, by plain products that can be counted, and switches back after."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.set_attn_implementation(implementation)


def token_formula(instruction_tokens: float, input_tokens: float, n: int) -> float:
    """Returns the paper's cost of TAGI relative to the concatenated prompt: (t + n·i) / (n·(t + i)), appendix B.5.

    The instruction is read once for n examples instead of n times. Outputs, the generator, the fusion layers and
    the longer decoder memory are left out, which is why measured figures stand beside it.

    Args:
        instruction_tokens: Tokens of the instruction, t.
        input_tokens: Tokens of one input, i.
        n: Examples that share the instruction.

    Raises:
        ValueError: If `n` or the number of tokens is not positive.
    """
    if n < 1 or instruction_tokens < 0 or input_tokens < 0 or instruction_tokens + input_tokens == 0:
        raise ValueError(
            f"the formula needs n >= 1 and some tokens, got t={instruction_tokens}, i={input_tokens}, n={n}"
        )
    return (instruction_tokens + n * input_tokens) / (n * (instruction_tokens + input_tokens))

"""Hugging Face's decoder-only models with their adapter as an argument: LoRA in every attention, I as a prefix.

The models of the Llama family hand unknown keyword arguments down to every attention; the attention here reads
`adapter` and `task_index` from them. Nothing is stored on a module between calls.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones.memory_attention import additive, attend, causal_mask, join_mask, prepend, run_index
from tagi_lightning.lora import adapted_linear

FUSED_QUERIES = 64
"""Queries from which fused attention to a memory copied to its examples takes less time than scores on one copy."""


class AdaptedCausalAttention(nn.Module):
    """Causal self-attention whose four projections add the LoRA update of their site, with prefix and memory before it.

    It takes over the weights of the attention it replaces, so names and checkpoints stay Hugging Face's, and rotates
    by that family's own function.
    """

    config: PreTrainedConfig
    layer_idx: int
    head_dim: int
    scaling: float
    sliding_window: int | None

    def __init__(self, attention: nn.Module, path: str) -> None:
        """Replaces `attention`, found at module path `path`."""
        super().__init__()
        self.__dict__.update(attention.__dict__)
        self.path = path
        self.rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        if not hasattr(attention, "sliding_window"):
            self.sliding_window = getattr(self.config, "sliding_window", None)

    def _project(self, target: str, states: Tensor, adapter: TaskAdapter | None, task_index: Tensor | None) -> Tensor:
        lora = None if adapter is None else adapter.lora
        name = f"{target}_proj"
        return adapted_linear(getattr(self, name), f"{self.path}.{name}", states, lora, task_index)

    def _heads(self, target: str, states: Tensor, adapter: TaskAdapter | None, task_index: Tensor | None) -> Tensor:
        """Returns projection `target` of `states`, normed where the family does so [B, H or G, S, head size]."""
        heads = self._project(target, states, adapter, task_index).unflatten(-1, (-1, self.head_dim))
        norm = getattr(self, f"{target}_norm", None)
        normed: Tensor = heads if norm is None else norm(heads)
        return normed.transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        adapter: TaskAdapter | None = None,
        task_index: Tensor | None = None,
        record: dict[int, tuple[Tensor, Tensor]] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends to the tokens before, the prefix and the memory of `adapter` first.

        Args:
            hidden_states: What the layer reads [B, S, d].
            position_embeddings: Cosines and sines of the tokens' positions.
            attention_mask: Boolean or additive mask over the own tokens [B, 1, S, K]; None for plain causality.
            position_ids: The tokens' positions [B, S].
            past_key_values: Cache of the own tokens; prefix and memory are never copied to it.
            adapter: Conditioning of T tasks; see `CausalBackbone` for how its rows stand to the examples.
            task_index: Task of each example [B].
            record: Takes this layer's keys and values, each [B, G, S, head size], where given.
            **kwargs: Handed to the attention function.

        Returns:
            Output [B, S, d], and the attention weights where the function gives them.
        """
        query, keys, values = (self._heads(target, hidden_states, adapter, task_index) for target in "qkv")
        query, keys = self.rotate(query, keys, *position_embeddings)
        if record is not None:
            record[self.layer_idx] = (keys, values)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        if adapter is not None and (adapter.memory is not None or adapter.prefix is not None):
            attended, weights = self._attend_with_memory(
                query, keys, values, attention_mask, position_ids, adapter, task_index
            )
        else:
            attended, weights = self._attend(query, keys, values, attention_mask, **kwargs)
        return self._project("o", attended.flatten(2), adapter, task_index), weights

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what Hugging Face's attention function gives: heads side by side [B, S, H, h], and weights."""
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {"scaling": self.scaling, "sliding_window": self.sliding_window}
        attended, weights = function(self, query, keys, values, mask, dropout=0.0, **kwargs)
        return attended, weights

    def _attend_with_memory(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        position_ids: Tensor | None,
        adapter: TaskAdapter,
        task_index: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends to [prefix ; instruction ; own tokens], the instruction's keys and values being the memory."""
        before, before_mask = self._before(adapter, query.dtype)
        if mask is None and query.shape[2] > 1:
            mask = causal_mask(query.shape[2], keys.shape[2], query.device)
        window, tokens = self.sliding_window, 0 if adapter.memory is None else adapter.memory.mask.shape[1]
        # the mask of the own tokens knows of the window, and a prefix has no position that could leave it
        if window is not None and (tokens == 0 or tokens + keys.shape[2] <= window):
            window = None
        if adapter.grouped or not torch.is_grad_enabled():
            task_index = run_index(len(before_mask), len(query), query.device)
        assert task_index is not None
        mask = join_mask(before_mask[task_index], mask, keys.shape[2])
        if not torch.is_grad_enabled() and window is None and query.shape[2] < FUSED_QUERIES:
            attended = attend(query, before, (keys, values), additive(mask, query.dtype), self.scaling)
            return attended.transpose(1, 2), None
        # the fused kernels keep no scores, which many tokens at once and the backward pass would take
        if window is not None:
            assert position_ids is not None
            mask = _cut_to_window(mask, position_ids, before_mask.shape[1] - tokens, tokens, window)
        keys, values = prepend(before, (keys, values), task_index)
        return self._attend(query, keys, values, mask)

    def _before(self, adapter: TaskAdapter, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Returns keys and values of [prefix ; instruction], each [T, G, P + I, head size], and their mask."""
        memory, prefix = adapter.memory, adapter.prefix
        if prefix is None:
            assert memory is not None
            return memory.keys_values[self.layer_idx], memory.mask
        own = prefix.heads(self.path, self.head_dim)
        mask = torch.full((prefix.num_tasks, prefix.length), prefix.bias, dtype=dtype, device=own[0].device)
        if memory is None:
            return own, mask
        every = torch.arange(len(mask), device=mask.device)
        both = prepend(own, memory.keys_values[self.layer_idx], every)
        return both, torch.cat([mask, additive(memory.mask, dtype)], dim=1)


def _cut_to_window(mask: Tensor, position_ids: Tensor, prefix: int, tokens: int, window: int) -> Tensor:
    """Hides what lies `window` positions or more back among `tokens` keys at 0, 1, 2, ..., which follow a prefix."""
    distance = position_ids[:, None, :, None] - torch.arange(tokens, device=mask.device)
    far = nn.functional.pad(distance >= window, (prefix, mask.shape[-1] - prefix - tokens))
    if mask.dtype == torch.bool:
        return mask & ~far
    return mask.masked_fill(far, torch.finfo(mask.dtype).min)


def _contiguous(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].contiguous(),)


class _Conditioned:
    """Adds `adapter`, `task_index` and `record` to the arguments of a decoder-only model's forward and generate."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Builds the model from `config` and replaces its attention modules."""
        super().__init__(config)  # type: ignore[call-arg]
        for index, layer in enumerate(self.model.layers):  # type: ignore[attr-defined]
            layer.self_attn = AdaptedCausalAttention(layer.self_attn, f"model.layers.{index}.self_attn")
        # of a slice of positions, which generate() takes, PyTorch would copy the output layer's weights to every row
        self.lm_head.register_forward_pre_hook(_contiguous)  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        adapter: TaskAdapter | None = None,
        task_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model under `adapter`; see `LlamaForCausalLM.forward` for the other arguments."""
        # generate() checks its arguments against the names in this signature
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            adapter=adapter,
            task_index=task_index,
            **kwargs,
        )


class ConditionedLlama(_Conditioned, LlamaForCausalLM):  # type: ignore[misc]
    """Llama and what is built like it, SmolLM2 among them."""


class ConditionedMistral(_Conditioned, MistralForCausalLM):  # type: ignore[misc]
    """Mistral: every layer attends within a sliding window where the configuration has one."""


class ConditionedQwen2(_Conditioned, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 and Qwen2.5: biases on queries, keys and values."""


class ConditionedQwen3(_Conditioned, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3: norms on queries and keys."""


FAMILIES: dict[str, type[ConditionedLlama | ConditionedMistral | ConditionedQwen2 | ConditionedQwen3]] = {
    "llama": ConditionedLlama,
    "mistral": ConditionedMistral,
    "qwen2": ConditionedQwen2,
    "qwen3": ConditionedQwen3,
}
"""Supported decoder-only families by the `model_type` of their configuration."""

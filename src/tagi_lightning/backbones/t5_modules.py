"""Hugging Face's T5 with its adapter as an argument: LoRA in every attention, fusion in the encoder, prefixes.

Hugging Face hands unknown keyword arguments of the model down to every attention; the modules here read `adapter`
and `task_index` from them. Nothing is stored on a module between calls, so gradient checkpointing, beams and mixed
batches see the same conditioning as the plain forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention, T5Block, T5LayerSelfAttention, eager_attention_forward

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones.memory_attention import additive, attend, causal_mask, join_mask, prepend, run_index
from tagi_lightning.lora import adapted_linear


class AdaptedAttention(T5Attention):
    """T5's attention whose four projections add the LoRA update of their site.

    It takes over the weights of the attention it replaces, so names and checkpoints stay Hugging Face's.
    """

    layer_idx: int

    def __init__(self, attention: T5Attention, path: str) -> None:
        """Replaces `attention`, found at module path `path`."""
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)
        self.path = path

    def _project(
        self, target: str, states: Tensor, adapter: TaskAdapter | None, task_index: Tensor | None, heads: bool = True
    ) -> Tensor:
        """Returns projection `target` of `states`, split to [B, H, S, head size] where `heads` is set."""
        lora = None if adapter is None else adapter.lora
        output = adapted_linear(getattr(self, target), f"{self.path}.{target}", states, lora, task_index)
        if not heads:
            return output
        return output.view(*output.shape[:-1], self.n_heads, self.key_value_proj_dim).transpose(1, 2)

    def keys_values(
        self, memory: Tensor, adapter: TaskAdapter | None, task_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values of `memory` [B, K, d], each [B, H, K, head size]."""
        return self._project("k", memory, adapter, task_index), self._project("v", memory, adapter, task_index)

    def _cached_keys_values(
        self,
        source: Tensor,
        is_cross: bool,
        cache: Cache | None,
        adapter: TaskAdapter | None,
        task_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values [B, H, K, head size], from the cache where it holds them."""
        layer_cache = cache
        if isinstance(cache, EncoderDecoderCache):
            if is_cross and cache.is_updated.get(self.layer_idx):
                layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values
            layer_cache = cache.cross_attention_cache if is_cross else cache.self_attention_cache
        keys, values = self.keys_values(source, adapter, task_index)
        if layer_cache is not None:
            keys, values = layer_cache.update(keys, values, self.layer_idx)
            if is_cross and isinstance(cache, EncoderDecoderCache):
                cache.is_updated[self.layer_idx] = True
        return keys, values

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Cache | None = None,
        adapter: TaskAdapter | None = None,
        task_index: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attends to `hidden_states`, or to `key_value_states` where given, as T5Attention does.

        Args:
            hidden_states: Queries' source [B, S, d].
            mask: Additive or boolean mask broadcastable to [B, H, S, K].
            key_value_states: Encoder memory for cross-attention [B, K, d].
            position_bias: Relative position bias shared between layers, or None to make it here; of attention to
                [I ; input], which has no such bias, the mask.
            past_key_values: Generation cache.
            adapter: Conditioning of T tasks.
            task_index: Task of each example [B].
            **kwargs: Handed to the attention function.

        Returns:
            Output [B, S, d], the position bias where it was made, and the attention weights where they are given.
        """
        is_cross = key_value_states is not None
        seen = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
        seen = seen.clone() if isinstance(seen, Tensor) else seen
        query = self._project("q", hidden_states, adapter, task_index)
        source = hidden_states if key_value_states is None else key_value_states
        keys, values = self._cached_keys_values(source, is_cross, past_key_values, adapter, task_index)
        memory = adapter.memory if is_cross and adapter is not None else None
        if memory is not None:
            if position_bias is None:
                position_bias = self._memory_mask(query, keys, mask, memory, task_index)
            own = keys, values
            attended, weights = self._attend_with_memory(query, own, position_bias, memory, task_index, kwargs)
        else:
            if position_bias is None:
                position_bias = self._position_bias(query, keys, seen)
            own_bias = position_bias
            if not is_cross and adapter is not None and adapter.prefix is not None:
                keys, values, mask = self._after_prefix(keys, values, mask, query.shape[2], adapter, task_index)
                own_bias = F.pad(position_bias, (adapter.prefix.length, 0), value=adapter.prefix.bias)
            bias = {"position_bias": own_bias, "scaling": self.scaling}
            attended, weights = self._attend(query, keys, values, mask, **bias, **kwargs)
        output = self._project("o", attended.flatten(2), adapter, task_index, heads=False)
        return output, position_bias, weights

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what Hugging Face's attention function gives: heads side by side [B, Q, H, h], and weights."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(self, query, keys, values, mask, dropout=0.0, **kwargs)
        return attended, weights

    def _position_bias(self, query: Tensor, keys: Tensor, seen: int | Tensor) -> Tensor:
        """Returns the bias of the scores [1, H, Q, K]; zero where this layer's stack has none."""
        if self.has_relative_attention_bias:
            bias: Tensor = self.compute_bias(query.shape[2], keys.shape[2], query.device, past_seen_tokens=seen)
            return bias
        return query.new_zeros(1, self.n_heads, query.shape[2], keys.shape[2])

    def _after_prefix(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        queries: int,
        adapter: TaskAdapter,
        task_index: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns keys, values and mask of [prefix ; own tokens]; the cache holds the own tokens alone."""
        prefix = adapter.prefix
        assert prefix is not None
        if adapter.grouped:
            task_index = run_index(prefix.num_tasks, len(keys), keys.device)
        assert task_index is not None
        if mask is None and self.is_causal and queries > 1:
            mask = causal_mask(queries, keys.shape[2], keys.device)
        mask = join_mask(task_index.new_ones(len(keys), prefix.length), mask, keys.shape[2])
        return *prepend(prefix.heads(self.path, self.key_value_proj_dim), (keys, values), task_index), mask

    def _memory_mask(
        self, query: Tensor, keys: Tensor, mask: Tensor | None, memory: InstructionStates, task_index: Tensor | None
    ) -> Tensor:
        """Returns the mask over [I ; input] [B, 1, Q or 1, I + S], additive where no gradients are recorded."""
        if not torch.is_grad_enabled():
            # one run a task, or one "task" an example: see T5Backbone._route
            task_index = run_index(len(memory.mask), len(keys), keys.device)
            return additive(join_mask(memory.mask[task_index], mask, keys.shape[2]), query.dtype)
        assert task_index is not None
        return join_mask(memory.mask[task_index], mask, keys.shape[2])

    def _attend_with_memory(
        self,
        query: Tensor,
        own: tuple[Tensor, Tensor],
        mask: Tensor,
        memory: InstructionStates,
        task_index: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Attends to [I ; input], the instruction's keys and values being those of `memory`."""
        before = memory.keys_values[self.layer_idx]
        if not torch.is_grad_enabled():
            return attend(query, before, own, mask, self.scaling).transpose(1, 2), None
        # in training the fused kernels save less for the backward pass than scores and weights would take
        assert task_index is not None
        keys, values = prepend(before, own, task_index)
        return self._attend(query, keys, values, mask, position_bias=None, scaling=self.scaling, **kwargs)


class FusedSelfAttention(T5LayerSelfAttention):
    """An encoder block's self-attention sublayer, followed by the fusion of eq. 1 where the adapter has one."""

    def __init__(self, layer: T5LayerSelfAttention, block: int) -> None:
        """Replaces `layer` of encoder block number `block`."""
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        self.block = block

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        adapter: TaskAdapter | None = None,
        task_index: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the fused hidden states F_l [B, S, d], the position bias and the attention weights."""
        kwargs |= {"adapter": adapter, "task_index": task_index}
        output, position_bias, weights = super().forward(hidden_states, **kwargs)
        if adapter is not None and adapter.fusion is not None:
            if task_index is None:
                raise ValueError("an adapter with fusion needs task_index")
            output = adapter.fusion.fuse(self.block, output, task_index)
        return output, position_bias, weights


class ConditionedT5(T5ForConditionalGeneration):
    """Hugging Face's T5 with `adapter` and `task_index` as arguments of forward and generate."""

    def __init__(self, config: T5Config) -> None:
        """Builds T5 from `config` and replaces its attention modules."""
        super().__init__(config)
        for index, block in enumerate(self.encoder.block):
            assert isinstance(block, T5Block)
            attention = block.layer[0]
            assert isinstance(attention, T5LayerSelfAttention)
            block.layer[0] = FusedSelfAttention(attention, index)
        for path, module in list(self.named_modules()):
            if type(module) is T5Attention:
                parent, _, name = path.rpartition(".")
                setattr(self.get_submodule(parent), name, AdaptedAttention(module, path))

    @torch.no_grad()
    def initialize_from_scratch(self) -> None:
        """Mends what T5's own initialisation makes hard to train on a small budget.

        An untied output layer gets weights of its own (the configuration class ties every T5) at std 1/sqrt(d): the
        default std of 1 starts at a loss above 50. Relative position biases start at std 1 instead of 1/sqrt(d), so
        that attention tells positions apart from the first step.
        """
        if not self.config.scale_decoder_outputs:
            self.lm_head.weight = nn.Parameter(torch.empty_like(self.lm_head.weight))
            nn.init.normal_(self.lm_head.weight, std=self.config.d_model**-0.5)
        for name, parameter in self.named_parameters():
            if "relative_attention_bias" in name:
                nn.init.normal_(parameter, std=1.0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        adapter: TaskAdapter | None = None,
        task_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs T5 under `adapter`; see `T5ForConditionalGeneration.forward` for the other arguments."""
        # generate() checks its arguments against the names in this signature
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            adapter=adapter,
            task_index=task_index,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Keeps the conditioning among the inputs of every decoding step."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if (cache := inputs.get("past_key_values")) is not None and cache.get_seq_length():
            # decoding that goes on from a cache would read what the cache holds once more
            inputs["decoder_input_ids"] = inputs["decoder_input_ids"][:, -1:]
        return inputs | {"adapter": kwargs.get("adapter"), "task_index": kwargs.get("task_index")}

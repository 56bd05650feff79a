"""T5 that takes its adapter as an argument: LoRA in every attention, fusion in the encoder, memory for the decoder.

Hugging Face hands unknown keyword arguments of the model down to every attention; the modules here read `adapter`
and `task_index` from them. Nothing is stored on a module between calls, so gradient checkpointing, beams and mixed
batches see the same conditioning as the plain forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention, T5Block, T5LayerSelfAttention, eager_attention_forward

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraConfig, LoraSite, adapted_linear

STACKS = ("encoder_self", "decoder_self", "decoder_cross")
"""Kinds of attention in T5, in the order of the sites."""


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
        heads_first: Tensor = output.unflatten(-1, (self.n_heads, self.key_value_proj_dim)).transpose(1, 2)
        return heads_first

    def _keys_values(
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
        keys = self._project("k", source, adapter, task_index)
        values = self._project("v", source, adapter, task_index)
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
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attends to `hidden_states`, or to `key_value_states` where given, as T5Attention does.

        Args:
            hidden_states: Queries' source [B, S, d].
            mask: Additive or boolean mask broadcastable to [B, H, S, K].
            key_value_states: Encoder memory for cross-attention [B, K, d].
            position_bias: Relative position bias shared between layers, or None to make it here.
            past_key_values: Generation cache.
            adapter: Conditioning of T tasks.
            task_index: Task of each example [B].
            **kwargs: Handed to the attention function.

        Returns:
            Output [B, S, d], the position bias, and the attention weights where the function gives them.
        """
        is_cross = key_value_states is not None
        seen = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
        seen = seen.clone() if isinstance(seen, Tensor) else seen
        query = self._project("q", hidden_states, adapter, task_index)
        source = hidden_states if key_value_states is None else key_value_states
        keys, values = self._keys_values(source, is_cross, past_key_values, adapter, task_index)
        if position_bias is None:
            if self.has_relative_attention_bias:
                position_bias = self.compute_bias(query.shape[2], keys.shape[2], query.device, past_seen_tokens=seen)
            else:
                position_bias = query.new_zeros(1, self.n_heads, query.shape[2], keys.shape[2])
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self, query, keys, values, mask, dropout=0.0, scaling=self.scaling, position_bias=position_bias, **kwargs
        )
        output = self._project("o", attended.flatten(2), adapter, task_index, heads=False)
        return output, position_bias, weights


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
        return inputs | {"adapter": kwargs.get("adapter"), "task_index": kwargs.get("task_index")}


class T5Backbone(Backbone):
    """Any Hugging Face T5: original or v1.1, tied or untied, gated or not, d_model equal to heads x d_kv or not."""

    model: ConditionedT5

    def __init__(self, model: ConditionedT5, name: str) -> None:
        """Wraps `model`, loaded from `name`."""
        super().__init__()
        self.model = model
        self.name = name

    @property
    def width(self) -> int:
        """Hidden width d."""
        return int(self.model.config.d_model)

    @property
    def fusion_shape(self) -> dict[str, int]:
        """`blocks`, `width`, `heads` and `inner` of the encoder."""
        config = self.model.config
        heads = config.num_heads
        return {"blocks": config.num_layers, "width": config.d_model, "heads": heads, "inner": heads * config.d_kv}

    def sites(self, config: LoraConfig) -> tuple[LoraSite, ...]:
        """Lists the LoRA sites of `config`: encoder blocks first, then the decoder's self- and cross-attention.

        Raises:
            ValueError: If a target or stack does not exist in T5.
        """
        stacks = config.stacks or STACKS
        if unknown := set(stacks) - set(STACKS):
            raise ValueError(f"lora.stacks {sorted(unknown)} are not in T5; choose from {', '.join(STACKS)}")
        if unknown := set(config.targets) - set("qkvo"):
            raise ValueError(f"lora.targets {sorted(unknown)} are not in T5's attention; choose from q, k, v, o")
        sites = []
        for path, module in self.model.named_modules():
            if not isinstance(module, AdaptedAttention):
                continue
            side = path.split(".")[0]
            stack = f"{side}_{'cross' if path.endswith('EncDecAttention') else 'self'}"
            if stack not in stacks:
                continue
            for target in config.targets:
                linear = getattr(module, target)
                block = int(path.split(".")[2])
                sites.append(
                    LoraSite(f"{path}.{target}", linear.in_features, linear.out_features, stack, block, target)
                )
        return tuple(sites)

    def encode(self, tokens: Tokens) -> Tensor:
        """Returns the plain encoder's final hidden states [N, L, d]."""
        states: Tensor = self.model.encoder(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        return states

    def _memory(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the decoder attends to, [I ; F_L] or F_L, and its mask."""
        states = self.model.encoder(
            input_ids=inputs.ids, attention_mask=inputs.mask, adapter=adapter, task_index=task_index
        ).last_hidden_state
        if adapter.memory is None:
            return states, inputs.mask
        return adapter.memory.to_memory(states, inputs.mask, task_index)

    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns teacher-forced logits [B, O, vocabulary] for `labels` [B, O]; see `Backbone.forward`."""
        memory, mask = self._memory(inputs, adapter, task_index)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            decoder_input_ids=self.model._shift_right(labels),
            adapter=adapter,
            task_index=task_index,
            use_cache=False,
        )
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def generate(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor, config: GenerationConfig) -> Tensor:
        """Returns generated ids without the start token [B, at most max_new_tokens], padded on the right."""
        memory, mask = self._memory(inputs, adapter, task_index)
        ids = self.model.generate(  # type: ignore[misc]
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            adapter=adapter,
            task_index=task_index,
            **config.to_kwargs(),
        )
        generated: Tensor = ids[:, 1:]
        return generated

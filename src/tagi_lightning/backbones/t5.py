"""T5 as a backbone: LoRA in every attention, fusion in the encoder, [I ; input] as the decoder's memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.backbones.t5_modules import AdaptedAttention, ConditionedT5
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraConfig, LoraSite
from tagi_lightning.losses import sequence_log_likelihood

STACKS = ("encoder_self", "decoder_self", "decoder_cross")
"""Kinds of attention in T5, in the order of the sites."""


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

    def prepare(self, adapter: TaskAdapter) -> TaskAdapter:
        """Returns `adapter` with the decoder's cross keys and values of the instructions."""
        memory = adapter.memory
        if memory is None or memory.keys_values:
            return adapter
        tasks = torch.arange(len(memory.states), device=memory.states.device)
        routed, states = adapter.in_runs(True), memory.states.to(self.model.dtype)
        pairs = tuple(layer.keys_values(states, routed, tasks) for layer in self._cross_attentions())
        return replace(adapter, memory=replace(memory, keys_values=pairs))

    def _route(self, adapter: TaskAdapter, task_index: Tensor) -> TaskAdapter:
        """Returns `adapter` prepared, and ready for the examples of `task_index` [B]."""
        adapter = self.prepare(adapter).route(task_index)
        if adapter.memory is None or adapter.grouped or torch.is_grad_enabled():
            return adapter
        # attention to a shared memory takes equal runs: where tasks are mixed, each example is a run of its own
        own = replace(adapter.memory.map(lambda tensor: tensor[task_index]), mask=adapter.memory.mask[task_index])
        return replace(adapter, memory=own)

    def _cross_attentions(self) -> list[AdaptedAttention]:
        modules = self.model.decoder.named_modules()
        return [module for name, module in modules if name.endswith("EncDecAttention")]  # type: ignore[misc]

    def _encode_inputs(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor) -> dict[str, Any]:
        """Returns the encoded inputs F_L as arguments of the model; the decoder finds I in the adapter."""
        states = self.model.encoder(
            input_ids=inputs.ids, attention_mask=inputs.mask, adapter=adapter, task_index=task_index
        ).last_hidden_state
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": inputs.mask}

    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns teacher-forced logits [B, O, vocabulary] for `labels` [B, O]; see `Backbone.forward`."""
        adapter = self._route(adapter, task_index)
        output = self.model(
            **self._encode_inputs(inputs, adapter, task_index),
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
        adapter = self._route(adapter, task_index)
        encoded = self._encode_inputs(inputs, adapter, task_index)
        ids = self.model.generate(  # type: ignore[misc]
            **encoded, adapter=adapter, task_index=task_index, **config.to_kwargs()
        )
        generated: Tensor = ids[:, 1:]
        return generated

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        The encoder and the decoder's cross keys and values run over the B inputs, not over the C choices.
        """
        prepared = self.prepare(adapter)
        adapter = self._route(prepared, task_index)
        states = self._encode_inputs(inputs, adapter, task_index)["encoder_outputs"].last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in self._cross_attentions():
            keys, values = layer.keys_values(states, adapter, task_index)
            cache.cross_attention_cache.update(keys[choice_index], values[choice_index], layer.layer_idx)
            cache.is_updated[layer.layer_idx] = True
        tasks, mask = task_index[choice_index], inputs.mask[choice_index]
        # the cache stands in for the states; only their shape is read again
        shape = states[:1, :1].expand(*mask.shape, -1)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=shape),
            attention_mask=mask,
            past_key_values=cache,
            decoder_input_ids=self.model._shift_right(choices),
            adapter=self._route(prepared, tasks),
            task_index=tasks,
            use_cache=True,
        )
        return sequence_log_likelihood(output.logits, choices)

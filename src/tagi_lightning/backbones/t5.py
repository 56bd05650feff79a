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
        if adapter.memory is None:
            return adapter
        tasks = torch.arange(len(adapter.memory.states), device=adapter.memory.states.device)
        pairs = tuple(layer.keys_values(adapter.memory.states, adapter, tasks) for layer in self._cross_attentions())
        return replace(adapter, memory=replace(adapter.memory, keys_values=pairs))

    def _cross_attentions(self) -> list[AdaptedAttention]:
        modules = self.model.decoder.named_modules()
        return [module for name, module in modules if name.endswith("EncDecAttention")]  # type: ignore[misc]

    def _decoder_inputs(
        self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor, rows: Tensor | None = None
    ) -> dict[str, Any]:
        """Encodes the inputs and returns what the decoder attends to, [I ; F_L] or F_L, as arguments of the model.

        Args:
            inputs: Input tokens [B, S].
            adapter: Conditioning of T tasks; where it is prepared, only F_L is projected to keys and values here.
            task_index: Task of each example [B].
            rows: Example that each of the decoder's N rows attends to [N]; None for one row an example.
        """
        states = self.model.encoder(
            input_ids=inputs.ids, attention_mask=inputs.mask, adapter=adapter, task_index=task_index
        ).last_hidden_state
        mask, memory = inputs.mask, adapter.memory
        prepared = memory.keys_values if memory is not None else ()
        if memory is not None:
            mask = torch.cat([memory.mask[task_index], mask], dim=1)
            if not prepared:
                states = torch.cat([memory.states.to(states.dtype)[task_index], states], dim=1)
        if rows is None and not prepared:
            return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask}
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for place, layer in enumerate(self._cross_attentions()):
            keys, values = layer.keys_values(states, adapter, task_index)
            if prepared:
                own_keys, own_values = (part.to(keys.dtype)[task_index] for part in prepared[place])
                keys, values = torch.cat([own_keys, keys], dim=2), torch.cat([own_values, values], dim=2)
            if rows is not None:
                keys, values = keys[rows], values[rows]
            cache.cross_attention_cache.update(keys, values, layer.layer_idx)
            cache.is_updated[layer.layer_idx] = True
        if rows is not None:
            mask = mask[rows]
        # the cache stands in for the states; only their shape is read again
        shape = states[:1, :1].expand(*mask.shape, -1)
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=shape),
            "attention_mask": mask,
            "past_key_values": cache,
        }

    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns teacher-forced logits [B, O, vocabulary] for `labels` [B, O]; see `Backbone.forward`."""
        output = self.model(
            **self._decoder_inputs(inputs, adapter, task_index),
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
        decoder_inputs = self._decoder_inputs(inputs, adapter, task_index)
        cache = decoder_inputs.get("past_key_values")
        if cache is not None and config.num_beams > 1:
            cache.batch_repeat_interleave(config.num_beams)
        ids = self.model.generate(  # type: ignore[misc]
            **decoder_inputs, adapter=adapter, task_index=task_index, **config.to_kwargs()
        )
        generated: Tensor = ids[:, 1:]
        return generated

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        The encoder and the decoder's cross keys and values run over the B inputs, not over the C choices.
        """
        output = self.model(
            **self._decoder_inputs(inputs, adapter, task_index, rows=choice_index),
            decoder_input_ids=self.model._shift_right(choices),
            adapter=adapter,
            task_index=task_index[choice_index],
            use_cache=True,
        )
        return sequence_log_likelihood(output.logits, choices)

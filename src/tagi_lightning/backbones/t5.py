"""T5 as a backbone: LoRA in every attention, fusion in the encoder, [I ; input] as the decoder's memory."""

from __future__ import annotations

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

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        The encoder and the decoder's cross keys and values run over the B inputs, not over the C choices.
        """
        memory, mask = self._memory(inputs, adapter, task_index)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for attention in self._cross_attentions():
            keys, values = attention.keys_values(memory, adapter, task_index)
            cache.cross_attention_cache.update(keys[choice_index], values[choice_index], attention.layer_idx)
            cache.is_updated[attention.layer_idx] = True
        output = self.model(
            # the cache stands in for the states, whose values are not read again
            encoder_outputs=BaseModelOutput(last_hidden_state=memory[:1].expand(len(choices), -1, -1)),
            attention_mask=mask[choice_index],
            decoder_input_ids=self.model._shift_right(choices),
            past_key_values=cache,
            adapter=adapter,
            task_index=task_index[choice_index],
            use_cache=True,
        )
        return sequence_log_likelihood(output.logits, choices)

    def _cross_attentions(self) -> list[AdaptedAttention]:
        modules = self.model.decoder.named_modules()
        return [module for name, module in modules if name.endswith("EncDecAttention")]  # type: ignore[misc]

"""T5 as a backbone: LoRA in every attention, fusion in the encoder, [I ; input] as the decoder's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5LayerFF

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.backbones.t5_modules import AdaptedAttention, ConditionedT5
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights
from tagi_lightning.losses import sequence_log_likelihood

STACKS = ("encoder_self", "decoder_self", "decoder_cross")
"""Kinds of attention in T5, in the order of the sites."""

COPIED = 2**17
"""Numbers of one layer's keys up to which decoding copies a task's instruction to the rows after the first: below it
one fused kernel over [I ; input] is faster than sharing what is read."""

STRETCH = 16
"""Tokens decoded greedily before rows that have ended leave the batch."""


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

    @property
    def prefix_sites(self) -> tuple[LoraSite, ...]:
        """Every self-attention of encoder and decoder; cross-attention has the instruction as its prefix."""
        sites = []
        for path, module in self.model.named_modules():
            if isinstance(module, AdaptedAttention) and path.endswith("SelfAttention"):
                side, _, block = path.split(".")[:3]
                sites.append(LoraSite(path, module.inner_dim, module.inner_dim, f"{side}_self", int(block), ""))
        return tuple(sites)

    @property
    def feed_forwards(self) -> tuple[nn.Module, ...]:
        """The feed-forward layer of every block, without its norm."""
        return tuple(module.DenseReluDense for module in self.model.modules() if isinstance(module, T5LayerFF))

    def encode(self, tokens: Tokens, lora: LoraWeights | None = None) -> Tensor:
        """Returns the encoder's final hidden states [N, L, d], plain or under one adapter a row; segments apart."""
        rows = torch.arange(len(tokens), device=tokens.ids.device).repeat_interleave(tokens.segments)
        apart = tokens.apart()
        states: Tensor = self.model.encoder(
            input_ids=apart.ids,
            attention_mask=apart.mask,
            adapter=TaskAdapter(lora=lora).in_runs(True),
            task_index=rows,
        ).last_hidden_state
        return states.reshape(*tokens.ids.shape, -1)

    def read(self, tokens: Tokens, lora: LoraWeights | None = None, keys_values: bool = False) -> InstructionStates:
        """Reads instructions [T, I] by the encoder; see `Backbone.read`."""
        return InstructionStates(self.encode(tokens, lora), tokens.mask)

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
        return [block.layer[1].EncDecAttention for block in self.model.decoder.block]  # type: ignore[index,union-attr,misc]

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
        routed = self._route(adapter, task_index)
        encoded = self._encode_inputs(inputs, routed, task_index)
        end_ids: list[Any] = [self.model.config.eos_token_id, *config.stop_ids]
        arguments = {"adapter": routed, "eos_token_id": end_ids, **config.to_kwargs()}
        if config.num_beams > 1 or config.do_sample or adapter.num_tasks > 1:
            sequences: Any = self.model.generate(**encoded, task_index=task_index, **arguments)  # type: ignore[misc]
            generated: Tensor = sequences[:, 1:]
            return generated
        cache = None
        if routed.memory is not None and (len(inputs) - 1) * routed.memory.keys_values[0][0].numel() <= COPIED:
            cache, encoded = self._with_memory(encoded, routed, task_index)
            arguments["adapter"] = replace(routed, memory=None)
        return self._generate_greedily(encoded, cache, arguments, end_ids)

    def _with_memory(
        self, encoded: dict[str, Any], adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[EncoderDecoderCache, dict[str, Any]]:
        """Copies the one task's instruction in front of each input: for few rows cheaper than attending to it apart."""
        assert adapter.memory is not None
        states = encoded["encoder_outputs"].last_hidden_state
        pairs = []
        for layer, before in zip(self._cross_attentions(), adapter.memory.keys_values, strict=True):
            own = layer.keys_values(states, adapter, task_index)
            both = zip(before, own, strict=True)
            pairs.append([torch.cat([x.to(y.dtype).expand(len(y), -1, -1, -1), y], dim=2) for x, y in both])
        mask = torch.cat([adapter.memory.mask.expand(len(states), -1), encoded["attention_mask"]], dim=1)
        return self._cross_cache(pairs), self._stand_in(states, mask)

    def _cross_cache(self, pairs: Sequence[Sequence[Tensor]]) -> EncoderDecoderCache:
        """Returns a cache that holds the cross keys and values of every layer."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer, (keys, values) in zip(self._cross_attentions(), pairs, strict=True):
            cache.cross_attention_cache.update(keys, values, layer.layer_idx)
            cache.is_updated[layer.layer_idx] = True
        return cache

    def _stand_in(self, states: Tensor, mask: Tensor) -> dict[str, Any]:
        """Returns arguments for a decoder whose cache holds all it reads; of the states only the shape is read."""
        shape = states[:1, :1].expand(*mask.shape, -1)
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=shape), "attention_mask": mask}

    def _generate_greedily(
        self,
        encoded: dict[str, Any],
        cache: EncoderDecoderCache | None,
        arguments: dict[str, Any],
        end_ids: list[Any],
    ) -> Tensor:
        """Decodes some tokens at a time and goes on with the rows that have not ended [B, at most max_new_tokens]."""
        states, mask = encoded["encoder_outputs"].last_hidden_state, encoded["attention_mask"]
        config, longest, shortest = self.model.config, arguments.pop("max_new_tokens"), arguments.pop("min_new_tokens")
        rows, done, ends = torch.arange(len(mask), device=mask.device), 0, torch.tensor(end_ids, device=mask.device)
        answers: Tensor = mask.new_full((len(mask), longest), config.pad_token_id)
        ids = mask.new_full((len(mask), 1), config.decoder_start_token_id)
        while done < longest and len(rows):
            output: Any = self.model.generate(  # type: ignore[misc]
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=ids,
                past_key_values=cache,
                task_index=torch.zeros_like(rows),
                max_new_tokens=min(STRETCH, longest - done),
                min_new_tokens=max((shortest or 0) - done, 0) or None,
                return_dict_in_generate=True,
                **arguments,
            )
            new = output.sequences[:, ids.shape[1] :]
            answers[rows, done : done + new.shape[1]] = new
            done += new.shape[1]
            ids, cache = output.sequences, output.past_key_values
            goes_on = ~torch.isin(new, ends).any(1)
            if done < longest and not goes_on.all():
                states, mask, rows, ids = states[goes_on], mask[goes_on], rows[goes_on], ids[goes_on]
                cache.batch_select_indices(goes_on)
        return answers[:, :done]

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        The encoder and the decoder's cross keys and values run over the B inputs, not over the C choices.
        """
        prepared = self.prepare(adapter)
        adapter = self._route(prepared, task_index)
        states = self._encode_inputs(inputs, adapter, task_index)["encoder_outputs"].last_hidden_state
        pairs = [
            [part[choice_index] for part in layer.keys_values(states, adapter, task_index)]
            for layer in self._cross_attentions()
        ]
        tasks = task_index[choice_index]
        output = self.model(
            **self._stand_in(states, inputs.mask[choice_index]),
            past_key_values=self._cross_cache(pairs),
            decoder_input_ids=self.model._shift_right(choices),
            adapter=self._route(prepared, tasks),
            task_index=tasks,
            use_cache=True,
        )
        return sequence_log_likelihood(output.logits, choices)

"""Decoder-only models as a backbone: LoRA in every attention, the instruction's keys and values as a prefix.

Shapes: B examples, T tasks, I instruction tokens, S input tokens, O output tokens, C choices, d width, L layers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig as HfGenerationConfig
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.backbones.causal_modules import AdaptedCausalAttention
from tagi_lightning.backbones.first_line import FirstLine, NeverBlank
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights
from tagi_lightning.losses import sequence_log_likelihood

STACK = "decoder_self"
"""The one kind of attention in a decoder-only model."""

CONTEXT_TOO_SHORT = (
    "the context of {name} is too short for these data: it has {limit} positions, and an example needs {needed} "
    "({parts}). Take a backbone with more positions, or shorter data: data.max_input_length cuts inputs and leaves "
    "demonstrations out, but never cuts a definition"
)
"""What is said of an example that is longer than the positions of a model."""


class CausalBackbone(Backbone):
    """A model of the Llama family: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

    A sequence is [BOS ; instruction] ; input ; output, each part right after the one before. Without memory the input
    comes first, right after BOS. Memory is the instruction's keys and values, read once a task.
    """

    def __init__(
        self, model: PreTrainedModel, name: str, bos_id: int | None = None, instruction_layer: int | None = None
    ) -> None:
        """Wraps a model of `causal_modules`.

        Args:
            model: One of `FAMILIES`.
            name: Where it was loaded from.
            bos_id: Token that every sequence starts with; None where the model's tokenizer prepends none.
            instruction_layer: Layer whose output, under the final norm, is the instruction's states, 1 to L; None for
                the last.

        Raises:
            ValueError: If there is no such layer.
        """
        super().__init__()
        self.model = model
        self.name = name
        self.bos_id = bos_id
        layers = int(model.config.num_hidden_layers)
        if instruction_layer is not None and not 1 <= instruction_layer <= layers:
            raise ValueError(f"instruction_layer must be 1 to {layers} for {name}, got {instruction_layer}")
        self.instruction_layer = instruction_layer
        stored = model.generation_config
        eos = stored.eos_token_id if stored is not None else None
        self.eos_ids: tuple[int, ...] = (eos,) if isinstance(eos, int) else tuple(eos or ())
        # how to decode is ours to say, not the checkpoint's, whose file may ask for sampling or repetition penalties
        model.generation_config = HfGenerationConfig(eos_token_id=eos)

    @property
    def width(self) -> int:
        """Hidden width d."""
        return int(self.model.config.hidden_size)

    @property
    def fusion_shape(self) -> dict[str, int]:
        """Zero blocks: there is no encoder to fuse; the memory is this model's fusion."""
        return {"blocks": 0, "width": self.width, "heads": 1, "inner": self.width}

    def sites(self, config: LoraConfig) -> tuple[LoraSite, ...]:
        """Lists the LoRA sites of `config`, layer by layer: target q is the module q_proj, and so on.

        Raises:
            ValueError: If a target or stack does not exist in a decoder-only model.
        """
        if unknown := set(config.stacks or ()) - {STACK}:
            raise ValueError(
                f"lora.stacks {sorted(unknown)} are not in {self.name}, which is decoder-only; use {STACK}"
            )
        if unknown := set(config.targets) - set("qkvo"):
            raise ValueError(
                f"lora.targets {sorted(unknown)} are not in {self.name}'s attention; choose from q, k, v, o"
            )
        sites = []
        for attention in self.model.modules():
            if not isinstance(attention, AdaptedCausalAttention):
                continue
            for target in config.targets:
                linear = attention.get_submodule(f"{target}_proj")
                name = f"{attention.path}.{target}_proj"
                sites.append(
                    LoraSite(name, linear.in_features, linear.out_features, STACK, attention.layer_idx, target)  # type: ignore[arg-type]
                )
        return tuple(sites)

    @property
    def prefix_sites(self) -> tuple[LoraSite, ...]:
        """The attention of every layer, with the width of its keys, which fewer heads than queries may have."""
        attentions = [module for module in self.model.modules() if isinstance(module, AdaptedCausalAttention)]
        widths = [attention.get_submodule("k_proj").out_features for attention in attentions]
        return tuple(
            LoraSite(attention.path, width, width, STACK, attention.layer_idx, "")  # type: ignore[arg-type]
            for attention, width in zip(attentions, widths, strict=True)
        )

    @property
    def feed_forwards(self) -> tuple[nn.Module, ...]:
        """The feed-forward layer of every block, without its norm."""
        return tuple(layer.mlp for layer in self.model.model.layers)

    def read(self, tokens: Tokens, lora: LoraWeights | None = None, keys_values: bool = False) -> InstructionStates:
        """Reads instructions [T, I]; BOS, where the model has one, is part of what is read. See `Backbone.read`."""
        own = self._with_bos(tokens)
        self._check_context(own.ids.shape[1], own.mask.sum(1))
        tasks = torch.arange(len(own), device=own.ids.device)
        record: dict[int, tuple[Tensor, Tensor]] | None = {} if keys_values else None
        output = self.model.model(
            input_ids=own.ids,
            position_ids=torch.arange(own.ids.shape[1], device=own.ids.device)[None],
            adapter=TaskAdapter(lora=lora).in_runs(True),
            task_index=tasks,
            record=record,
            output_hidden_states=self.instruction_layer is not None,
            use_cache=False,
        )
        states = output.last_hidden_state
        if self.instruction_layer is not None and self.instruction_layer < self.model.config.num_hidden_layers:
            states = self.model.model.norm(output.hidden_states[self.instruction_layer])
        pairs = tuple(record[layer] for layer in sorted(record)) if record is not None else ()
        return InstructionStates(states, own.mask, pairs)

    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns teacher-forced logits [B, O, vocabulary] for `labels` [B, O]; see `Backbone.forward`.

        Every row is [input ; output] without a gap, so causality hides all padding; the output layer runs over the
        positions that predict a label alone.
        """
        adapter = self._route(adapter, task_index)
        own, before = self._own(inputs, adapter, task_index)
        ends = own.mask.sum(1)
        places = ends[:, None] + torch.arange(labels.shape[1], device=labels.device)
        ids = torch.cat([own.ids, torch.zeros_like(labels)], dim=1).scatter(1, places, labels.clamp(min=0))
        self._check_context(ids.shape[1] + _width(adapter), ends + (labels != IGNORE_INDEX).sum(1), before)
        hidden = self.model.model(
            input_ids=ids,
            position_ids=before[:, None] + torch.arange(ids.shape[1], device=ids.device),
            adapter=adapter,
            task_index=task_index,
            use_cache=False,
        ).last_hidden_state
        predicting = (places - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        logits: Tensor = self.model.lm_head(hidden.gather(1, predicting))
        return logits

    @torch.no_grad()
    def generate(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor, config: GenerationConfig) -> Tensor:
        """Returns generated ids [B, at most max_new_tokens], padded on the right by an end token."""
        adapter = self._route(adapter, task_index)
        own, before = self._own(inputs, adapter, task_index)
        self._check_context(own.ids.shape[1] + _width(adapter), own.mask.sum(1), before)
        own = _pad_left(own)
        ends = (*self.eos_ids, *config.stop_ids)
        start, one_line = own.ids.shape[1], bool(config.newline_ids)
        ids = self.model.generate(  # type: ignore[operator]
            input_ids=own.ids,
            attention_mask=own.mask,
            position_ids=_positions(own.mask, before),
            adapter=adapter,
            task_index=task_index,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,
            stopping_criteria=[FirstLine(config.newline_ids, config.blank_ids, start)] if one_line else [],
            logits_processor=[NeverBlank(ends, config.blank_ids, start)] if one_line and ends else [],
            **config.to_kwargs(),
        )
        generated: Tensor = ids[:, start:]
        return generated

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        The inputs are read once; their choices go on from the keys and values of their input.
        """
        routed = self._route(adapter, task_index)
        own, before = self._own(inputs, routed, task_index)
        widest = _width(routed) + own.ids.shape[1] + choices.shape[1]
        lengths = own.mask.sum(1)[choice_index] + (choices != IGNORE_INDEX).sum(1)
        self._check_context(widest, lengths, before[choice_index])
        own = _pad_left(own)
        positions = _positions(own.mask, before)
        cache = DynamicCache(config=self.model.config)
        hidden = self.model.model(
            input_ids=own.ids,
            attention_mask=own.mask,
            position_ids=positions,
            past_key_values=cache,
            adapter=routed,
            task_index=task_index,
            use_cache=True,
        ).last_hidden_state[choice_index, -1:]
        if choices.shape[1] > 1:
            cache.batch_select_indices(choice_index)
            tasks, follow = task_index[choice_index], torch.arange(1, choices.shape[1], device=choices.device)
            mask = torch.cat([own.mask[choice_index], torch.ones_like(choices[:, 1:])], dim=1)
            rest = self.model.model(
                input_ids=choices[:, :-1].clamp(min=0),
                attention_mask=mask,
                position_ids=positions[choice_index, -1:] + follow,
                past_key_values=cache,
                adapter=self._route(adapter, tasks),
                task_index=tasks,
                use_cache=True,
            ).last_hidden_state
            hidden = torch.cat([hidden, rest], dim=1)
        return sequence_log_likelihood(self.model.lm_head(hidden), choices)

    def _route(self, adapter: TaskAdapter, task_index: Tensor) -> TaskAdapter:
        """Returns `adapter` ready for the examples of `task_index` [B].

        Without gradients the rows of its memory and prefix are equal runs of examples: T tasks where the examples
        stand in such runs, one row an example elsewhere. With gradients `task_index` tells an example's row.

        Raises:
            ValueError: If it has a memory without keys and values.
        """
        adapter, memory, prefix = adapter.route(task_index), adapter.memory, adapter.prefix
        if memory is not None and not memory.keys_values:
            raise ValueError("the adapter's memory has no keys and values; read the instructions with keys_values=True")
        if adapter.grouped or torch.is_grad_enabled():
            return adapter
        if memory is not None:
            memory = replace(memory.map(lambda tensor: tensor[task_index]), mask=memory.mask[task_index])
        if prefix is not None:
            prefix = prefix.map(lambda tensor: tensor[task_index])
        return replace(adapter, memory=memory, prefix=prefix)

    def _own(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor) -> tuple[Tokens, Tensor]:
        """Returns the tokens that come after the memory of a routed adapter, and how many came before them [B]."""
        if adapter.memory is None:
            return self._with_bos(inputs), inputs.mask.new_zeros(len(inputs))
        lengths = adapter.memory.mask.sum(1)
        if adapter.grouped or not torch.is_grad_enabled():
            return inputs, lengths.repeat_interleave(len(inputs) // len(lengths))
        return inputs, lengths[task_index]

    def _with_bos(self, tokens: Tokens) -> Tokens:
        """Returns `tokens` with BOS in front of every row, where the model has one."""
        if self.bos_id is None:
            return tokens
        first = torch.ones_like(tokens.mask[:, :1])
        return Tokens(torch.cat([first * self.bos_id, tokens.ids], 1), torch.cat([first, tokens.mask], 1))

    def _check_context(self, widest: int, own: Tensor, before: Tensor | None = None) -> None:
        """Refuses sequences longer than the model's positions.

        Args:
            widest: Length of the sequences with their padding, which is looked at first.
            own: Tokens of each sequence that are its own [B].
            before: Tokens of its instruction [B]; None where there is none.

        Raises:
            ValueError: If a sequence does not fit; the message names its lengths.
        """
        limit = int(self.model.config.max_position_embeddings)
        if widest <= limit:
            return
        total = own if before is None else own + before
        longest = int(total.argmax())
        if int(total[longest]) <= limit:
            return
        parts = "an instruction, or an input with its output"
        if before is not None and int(before[longest]):
            parts = (
                f"an instruction of {int(before[longest])} tokens and an input with its output of {int(own[longest])}"
            )
        raise ValueError(CONTEXT_TOO_SHORT.format(name=self.name, limit=limit, needed=int(total[longest]), parts=parts))


def _pad_left(tokens: Tokens) -> Tokens:
    """Returns right-padded rows with their padding on the left.

    Raises:
        ValueError: If a row is empty: there is nothing that its first output token could follow.
    """
    if not bool(tokens.mask.any(1).all()):
        raise ValueError("an input without any token cannot be continued; end it with an output cue")
    columns = torch.arange(tokens.ids.shape[1], device=tokens.ids.device) - (tokens.mask == 0).sum(1, keepdim=True)
    return Tokens(tokens.ids.gather(1, columns.clamp(min=0)), (columns >= 0).to(tokens.mask.dtype))


def _width(adapter: TaskAdapter) -> int:
    """Returns the tokens of the memory with their padding."""
    return 0 if adapter.memory is None else adapter.memory.mask.shape[1]


def _positions(mask: Tensor, before: Tensor) -> Tensor:
    """Returns positions of left-padded rows [B, S] whose first token stands at position `before` [B]."""
    return before[:, None] + (mask.cumsum(1) - 1).clamp(min=0)

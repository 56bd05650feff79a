"""What an instruction costs a decoder-only model: concatenated, as a cached prefix, or as a generated adapter.

A decoder-only model can keep an instruction's keys and values (prefix caching), which T5 cannot. Then a further input
pays for its own tokens either way, and an adapter saves the attention to the prefix and the memory of it, no more.

Operations are counted as in `flops`: matrix products alone, attention over whole rectangles, outputs teacher-forced.
Tokens: I of the instruction, S of an input, O of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from tagi_lightning.lora import LoraSite


@dataclass(frozen=True)
class DecoderShape:
    """A model of the Llama family.

    Attributes:
        token_flops: Operations of all linear layers for one token, the output layer left out.
        pair_flops: Operations of all layers for one query on one key.
        output_flops: Operations of the output layer for one token.
        key_values: Numbers in the keys and values of one token, in all layers.
    """

    token_flops: int
    pair_flops: int
    output_flops: int
    key_values: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> DecoderShape:
        """Reads a Hugging Face configuration."""
        layers, width = config.num_hidden_layers, config.hidden_size
        head = getattr(config, "head_dim", None) or width // config.num_attention_heads
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        linear = 2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size
        return cls(2 * layers * linear, 4 * layers * queries, 2 * width * config.vocab_size, 2 * layers * keys)

    def flops(self, tokens: int, before: int = 0) -> int:
        """Returns the operations of `tokens` that attend to `before` earlier ones and to each other."""
        return tokens * self.token_flops + tokens * (before + tokens) * self.pair_flops


@dataclass(frozen=True)
class AdapterShape:
    """A generated LoRA and its generator.

    Attributes:
        values: Numbers in the adapter.
        token_flops: Operations of the unmerged adapter for one token.
        merge_flops: Operations of adding it to the weights.
        generate_flops: Operations of the hypernetwork for one instruction.
        generator_bytes: Weights and buffers of the hypernetwork.
    """

    values: int
    token_flops: int
    merge_flops: int
    generate_flops: int
    generator_bytes: int

    @classmethod
    def of(cls, sites: Sequence[LoraSite], rank: int, generate_flops: int, generator_bytes: int) -> AdapterShape:
        """Reads the sites; what the hypernetwork costs is counted on the hypernetwork itself."""
        values = rank * sum(site.in_features + site.out_features for site in sites)
        merged = 2 * rank * sum(site.in_features * site.out_features for site in sites)
        return cls(values, 2 * values, merged, generate_flops, generator_bytes)


@dataclass(frozen=True)
class PromptingCost:
    """One way to give the model its task.

    Attributes:
        once: Operations paid once a task.
        each: Operations paid for every input with its output.
    """

    once: float
    each: float

    def flops(self, inputs: int) -> float:
        """Returns the operations of a task with `inputs` inputs."""
        return self.once + inputs * self.each

    def pays_after(self, other: PromptingCost) -> float:
        """Returns the number of inputs from which this costs less than `other`: 0 at once, infinity never."""
        more, saved = self.once - other.once, other.each - self.each
        if more <= 0 and saved >= 0:
            return 0.0
        return more / saved if saved > 0 else float("inf")


@dataclass(frozen=True)
class PrefixCosts:
    """The systems of one comparison.

    Attributes:
        model: The backbone.
        adapter: The adapter.
        instruction: I.
        input: S.
        output: O.
    """

    model: DecoderShape
    adapter: AdapterShape
    instruction: int
    input: int
    output: int

    def systems(self) -> dict[str, PromptingCost]:
        """Returns operations by system; LoRA is merged where the name does not say otherwise."""
        model, adapter = self.model, self.adapter
        own, answer = self.input + self.output, self.output * self.model.output_flops
        read = model.flops(self.instruction)
        bare, seeing = model.flops(own) + answer, model.flops(own, self.instruction) + answer
        generated = read + adapter.generate_flops
        return {
            "none": PromptingCost(0, bare),
            "concatenated": PromptingCost(0, model.flops(self.instruction + own) + answer),
            "cached": PromptingCost(read, seeing),
            "lora": PromptingCost(generated + adapter.merge_flops, bare),
            "lora_unmerged": PromptingCost(generated, bare + own * adapter.token_flops),
            "prefix": PromptingCost(generated + adapter.merge_flops, seeing),
        }

    def held(self, tasks: int, examples: int) -> dict[str, int]:
        """Returns the numbers held while `examples` of `tasks` tasks are decoded together, the weights left out."""
        own = examples * (self.input + self.output) * self.model.key_values
        shared = tasks * self.instruction * self.model.key_values
        copied = examples * self.instruction * self.model.key_values
        adapters = tasks * self.adapter.values
        return {"concatenated": own + copied, "cached": own + shared, "lora": own + adapters} | {
            "prefix": own + shared + adapters
        }

    @property
    def memory_break_even(self) -> float:
        """Instruction tokens whose keys and values are as large as the adapter, both in one type."""
        return self.adapter.values / self.model.key_values

    @property
    def unmerged_break_even(self) -> float:
        """Instruction tokens whose attention costs as much as the unmerged adapter."""
        return self.adapter.token_flops / self.model.pair_flops

    def instructions_break_even(self, type_bytes: int = 2) -> float:
        """Returns the number of such instructions from which adapters and generator take less than keys and values.

        Args:
            type_bytes: Bytes of a number of adapters, keys and values.
        """
        saved = (self.instruction * self.model.key_values - self.adapter.values) * type_bytes
        return self.adapter.generator_bytes / saved if saved > 0 else float("inf")

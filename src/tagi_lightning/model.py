"""TAGI: a frozen backbone, and what turns an instruction into its adapter.

    instruction -> encoder of the frozen backbone -> I -+-> hypernetwork -> LoRA
                                                        +-> keys and values of the encoder fusion
                                                        +-> decoder memory [I ; input]

Shapes: B examples, T tasks, I instruction tokens, S input tokens, O output tokens, d width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tagi_lightning.adapter import InstructionStates, PreparedAdapter, TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig, Part
from tagi_lightning.backbones.loading import DECODER_ONLY_SIZES
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.fusion import EncoderFusion, FusionConfig
from tagi_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from tagi_lightning.lora import LoraConfig, LoraWeights
from tagi_lightning.merging import merge
from tagi_lightning.prefix import PrefixWeights
from tagi_lightning.storage.hub import HubModel


@dataclass(frozen=True)
class TagiConfig:
    """Every piece of the method, each a switch."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    """Sites, rank and scale of the adapters."""
    hypernetwork: HypernetworkConfig = field(default_factory=HypernetworkConfig)
    """Pooling and generator (eq. 2)."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Cross-attention of the encoder to the instruction (eq. 1)."""
    decoder_memory: bool = True
    """Whether the decoder's memory is [I ; input] rather than the input alone; a decoder-only model's prefix."""
    memory_lora: bool = False
    """Whether the memory is read again under the generated LoRA, instead of by the plain backbone."""
    memory_of: Literal["instruction", "demonstrations"] = "instruction"
    """Whose states decoder_memory holds: the instruction's, or that of demonstrations, each encoded apart (FiD-ICL)."""
    reads: Literal["input", "prompt", "demonstrations"] = "input"
    """What the backbone reads: input, the bare b; prompt, instruction and input concatenated, (a;b); demonstrations,
    these and the prompt concatenated (Concat-ICL)."""
    trained_backbone: Part = "none"
    """Weights of the backbone that train: none; norms and token embeddings; these and the feed-forward layers, which
    is what the authors ran; all, which is full fine-tuning."""

    def __post_init__(self) -> None:
        if self.memory_lora and self.hypernetwork.enabled and not self.generates_lora:
            raise ValueError(
                "tagi.memory_lora reads the memory under the generated LoRA, and tagi.hypernetwork.writes=prefix "
                "generates none: set writes=lora or both"
            )
        if self.memory_lora and not self.decoder_memory:
            raise ValueError("tagi.memory_lora reads the memory, which tagi.decoder_memory=false leaves out")
        alone = self.decoder_memory and not (self.hypernetwork.enabled or self.fusion.enabled or self.memory_lora)
        if self.memory_of == "demonstrations" and not alone:
            raise ValueError(
                "tagi.memory_of=demonstrations is FiD-ICL, whose demonstrations are the decoder's memory and nothing "
                "else: set decoder_memory=true, hypernetwork.enabled=false, fusion.enabled=false, memory_lora=false"
            )

    @property
    def generates_lora(self) -> bool:
        """Whether a LoRA is generated."""
        return self.hypernetwork.enabled and self.hypernetwork.writes != "prefix"


class TagiModel(HubModel, nn.Module):
    """A backbone that solves a task from its instruction's adapter.

    What is saved is the hypernetwork, the fusion and, where `trained_backbone` says so, weights of the backbone.
    """

    def __init__(self, backbone: Backbone, config: TagiConfig) -> None:
        """Builds the hypernetwork and fusion that `config` enables around `backbone`.

        Where `config.trained_backbone` says so, gradients flow to weights of `backbone` from here on.

        Raises:
            ValueError: If fusion or a memory of demonstrations is enabled for a backbone that has no encoder, or
                weights are to train that are stored in a type that cannot.
        """
        super().__init__()
        if config.fusion.enabled and not backbone.fusion_shape["blocks"]:
            raise ValueError(
                f"{backbone.name} is decoder-only and has no encoder to fuse with the instruction: "
                f"{DECODER_ONLY_SIZES.format(name=backbone.name)}. The piece itself is tagi.fusion.enabled=false; its "
                "prefix, the instruction's keys and values, is tagi.decoder_memory"
            )
        if config.memory_of == "demonstrations" and not backbone.fusion_shape["blocks"]:
            raise ValueError(
                f"{backbone.name} has no encoder to read demonstrations apart, as tagi.memory_of=demonstrations "
                "(FiD-ICL) does: take tagi.reads=demonstrations (Concat-ICL)"
            )
        self.config = config
        self.backbone = backbone
        self.sites = backbone.sites(config.lora)
        self.hypernetwork = (
            Hypernetwork(self.sites, backbone.width, config.hypernetwork, config.lora, backbone.prefix_sites)
            if config.hypernetwork.enabled
            else None
        )
        self.fusion = EncoderFusion(config.fusion, **backbone.fusion_shape) if config.fusion.enabled else None
        self._backbone_part = frozenset(f"backbone.{name}" for name in backbone.train_part(config.trained_backbone))
        self._digest: tuple[list[tuple[int, int]], str] = ([], "")

    @property
    def uses_instruction(self) -> bool:
        """Whether anything depends on the instruction besides what the backbone reads."""
        generates = self.hypernetwork is not None and self.hypernetwork.reads_instruction
        return generates or self.fusion is not None or self.config.decoder_memory

    def inputs(self, batch: TaskBatch) -> Tokens:
        """Returns what the backbone reads of a batch: inputs [B, S], prompts [B, P], or demonstrated ones [B, Q].

        Raises:
            ValueError: If the batch does not have it.
        """
        if self.config.reads == "input":
            return batch.input
        if self.config.reads == "demonstrations":
            if batch.demonstrated_prompt is None:
                raise ValueError(
                    "tagi.reads=demonstrations reads demonstrations and prompt concatenated: "
                    "set data.demonstrations=16 and data.with_prompt=true"
                )
            return batch.demonstrated_prompt
        if batch.prompt is None:
            raise ValueError("tagi.reads=prompt reads instruction and input concatenated: set data.with_prompt=true")
        return batch.prompt

    def conditions(self, batch: TaskBatch) -> Tokens:
        """Returns what the batch's adapters are made of: instructions [T, I], or demonstrations as segments [T, K D].

        Raises:
            ValueError: If the batch does not have it.
        """
        if self.config.memory_of == "instruction":
            return batch.instruction
        if batch.demonstrations is None:
            raise ValueError("tagi.memory_of=demonstrations reads demonstrations apart: set data.demonstrations=16")
        return batch.demonstrations

    def encode_instructions(self, instruction: Tokens, memory: bool = True) -> InstructionStates:
        """Returns the backbone's states over instructions [T, I]; of no token where nothing uses them.

        No gradient flows into a backbone that is frozen.

        Args:
            instruction: Token rows of T distinct instructions.
            memory: Whether keys and values for the memory come along, where there is one; generating needs none.
        """
        if not self.uses_instruction:
            states = torch.zeros(len(instruction), 0, self.backbone.width, device=instruction.ids.device)
            return InstructionStates(states, instruction.mask[:, :0])
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            again = self.config.memory_lora and memory
            keys_values = self.config.decoder_memory and memory and not again
            encoded = self.backbone.read(instruction, keys_values=keys_values)
        return replace(encoded, tokens=instruction) if again else encoded

    def adapt(self, instruction: Tokens | InstructionStates) -> TaskAdapter:
        """Turns instructions into adapters, in one forward pass.

        Args:
            instruction: Token rows of T distinct instructions [T, I], or what else `conditions` gives, or their states
                where they are at hand.

        Returns:
            The adapters of the T tasks; differentiable.

        Raises:
            ValueError: If the states at hand were read without the tokens that `memory_lora` reads again.
        """
        encoded = self.encode_instructions(instruction) if isinstance(instruction, Tokens) else instruction
        generate = self.hypernetwork
        lora, prefix = generate(encoded.states, encoded.mask) if generate is not None else (None, None)
        return self.conditioned(encoded, lora, prefix)

    def conditioned(
        self, encoded: InstructionStates, lora: LoraWeights | None, prefix: PrefixWeights | None
    ) -> TaskAdapter:
        """Returns T instructions' fusion and memory with a LoRA and a prefix that need not be their own.

        Raises:
            ValueError: If the states were read without the tokens that `memory_lora` reads again.
        """
        return TaskAdapter(
            lora=lora,
            fusion=self.fusion(encoded.states, encoded.mask) if self.fusion is not None else None,
            memory=self._memory(encoded, lora) if self.config.decoder_memory else None,
            prefix=prefix,
        )

    def _memory(self, encoded: InstructionStates, lora: LoraWeights | None) -> InstructionStates:
        if not self.config.memory_lora:
            return encoded
        if encoded.tokens is None:
            raise ValueError("these states were read without what the memory needs: encode_instructions(memory=True)")
        return self.backbone.read(encoded.tokens, lora, keys_values=True)

    @torch.no_grad()
    def prepare(self, instruction: Tokens, dtype: torch.dtype | None = None) -> PreparedAdapter:
        """Computes everything that depends on the instructions [T, I] alone, once, to be used for many inputs.

        Args:
            instruction: Token rows of T instructions.
            dtype: Type to keep the adapter in; None keeps each tensor's own.
        """
        with self.backbone.lock:
            adapter = self.backbone.prepare(self.adapt(instruction)).detach(dtype)
        pieces = (adapter.lora, adapter.fusion, adapter.memory, adapter.prefix)
        return PreparedAdapter(*pieces, model_digest=self.digest())

    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns the adapted backbone's teacher-forced logits [B, O, V]; see `Backbone.forward`.

        Raises:
            ValueError: If `adapter` is a cache made by other weights than the present ones.
        """
        self._check_fresh(adapter)
        with self.backbone.lock:
            logits: Tensor = self.backbone(inputs, labels, adapter, task_index)
        return logits

    def generate(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor, config: GenerationConfig) -> Tensor:
        """Returns generated ids [B, at most max_new_tokens]; see `Backbone.generate`.

        Raises:
            ValueError: If `adapter` is a cache made by other weights than the present ones.
        """
        self._check_fresh(adapter)
        with self.backbone.lock:
            return self.backbone.generate(inputs, adapter, task_index, config)

    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns each choice's summed log-likelihood [C] and number of tokens [C]; see `Backbone.score`.

        Raises:
            ValueError: If `adapter` is a cache made by other weights than the present ones.
        """
        self._check_fresh(adapter)
        with self.backbone.lock:
            return self.backbone.score(inputs, choices, choice_index, adapter, task_index)

    def merged(self, adapter: PreparedAdapter) -> AbstractContextManager[PreparedAdapter]:
        """Adds the LoRA of one task to the backbone's weights for a `with` block; see `merging.merge`.

        The block's value is what remains of the adapter, to be used with inputs of that task. Other threads wait.
        Where the weights to be changed are trained ones, whose digest marks the adapter, nothing is merged.

        Raises:
            ValueError: If `adapter` is of several tasks, or was made by other weights than the present ones.
        """
        self._check_fresh(adapter)
        sites = adapter.lora.a if adapter.lora is not None else ()
        if not self._backbone_part.isdisjoint(f"backbone.model.{site}.weight" for site in sites):
            return nullcontext(adapter)
        return merge(self.backbone.model, adapter, self.backbone.lock)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of hypernetwork and fusion, and of the backbone where some of it trains, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Returns what training changed and must be saved: hypernetwork, fusion and trained backbone weights."""
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("backbone.")}
        return own | {name: parameter.data for name, parameter in self._saved_parameters()}

    def _saved_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields all but the weights of the backbone that never trained."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad or name in self._backbone_part or not name.startswith("backbone."):
                yield name, parameter

    def _saved_tensors(self) -> Iterator[Tensor]:
        """Yields what is saved and what of it is fixed by a seed."""
        yield from (parameter for _, parameter in self._saved_parameters())
        if self.hypernetwork is not None:
            yield from self.hypernetwork.buffers()

    def digest(self) -> str:
        """Returns a SHA-256 of all that is saved, which marks the caches it makes."""
        versions = [(tensor.data_ptr(), tensor._version) for tensor in self._saved_tensors()]
        if self._digest[0] == versions:
            return self._digest[1]
        sha = hashlib.sha256()
        for name, tensor in sorted(self.trained_state().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        self._digest = (versions, sha.hexdigest())
        return self._digest[1]

    def _check_fresh(self, adapter: TaskAdapter) -> None:
        if isinstance(adapter, PreparedAdapter) and self.training:
            raise ValueError("a PreparedAdapter is a cache for inference; in training call adapt() instead")
        if isinstance(adapter, PreparedAdapter) and adapter.model_digest != self.digest():
            raise ValueError(
                "this PreparedAdapter was made by other weights than the present ones; call prepare() again"
            )

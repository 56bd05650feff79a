"""TAGI: a frozen backbone, and what turns an instruction into its adapter.

    instruction -> encoder of the frozen backbone -> I -+-> hypernetwork -> LoRA
                                                        +-> keys and values of the encoder fusion
                                                        +-> decoder memory [I ; input]

Shapes: B examples, T tasks, I instruction tokens, S input tokens, O output tokens, d width.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tagi_lightning.adapter import InstructionStates, PreparedAdapter, TaskAdapter
from tagi_lightning.backbones.base import Backbone, GenerationConfig
from tagi_lightning.data.batch import Tokens
from tagi_lightning.fusion import EncoderFusion, FusionConfig
from tagi_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from tagi_lightning.lora import LoraConfig, LoraWeights
from tagi_lightning.merging import merge


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


class TagiModel(nn.Module):
    """A frozen backbone that solves a task from its instruction's adapter.

    The backbone's weights are not part of `state_dict`: what is saved is the hypernetwork and the fusion.
    """

    def __init__(self, backbone: Backbone, config: TagiConfig) -> None:
        """Builds the hypernetwork and fusion that `config` enables around `backbone`.

        Raises:
            ValueError: If fusion is enabled for a backbone that has no encoder.
        """
        super().__init__()
        if config.fusion.enabled and not backbone.fusion_shape["blocks"]:
            raise ValueError(
                f"{backbone.name} has no encoder to fuse with the instruction: set tagi.fusion.enabled=false; "
                "its prefix, the instruction's keys and values, is tagi.decoder_memory"
            )
        self.config = config
        self.backbone = backbone
        self.sites = backbone.sites(config.lora)
        self.hypernetwork = (
            Hypernetwork(self.sites, backbone.width, config.hypernetwork, config.lora)
            if config.hypernetwork.enabled
            else None
        )
        self.fusion = EncoderFusion(config.fusion, **backbone.fusion_shape) if config.fusion.enabled else None
        self._digest: tuple[list[tuple[int, int]], str] = ([], "")

    def encode_instructions(self, instruction: Tokens) -> InstructionStates:
        """Returns the frozen backbone's states over instructions [T, I]; no gradient flows into the backbone."""
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            again = self.config.memory_lora
            encoded = self.backbone.read(instruction, keys_values=self.config.decoder_memory and not again)
        return replace(encoded, tokens=instruction) if again else encoded

    def adapt(self, instruction: Tokens | InstructionStates) -> TaskAdapter:
        """Turns instructions into adapters, in one forward pass.

        Args:
            instruction: Token rows of T distinct instructions [T, I], or their states where they are at hand.

        Returns:
            The adapters of the T tasks; differentiable.
        """
        encoded = self.encode_instructions(instruction) if isinstance(instruction, Tokens) else instruction
        lora = self.hypernetwork(encoded.states, encoded.mask) if self.hypernetwork is not None else None
        return TaskAdapter(
            lora=lora,
            fusion=self.fusion(encoded.states, encoded.mask) if self.fusion is not None else None,
            memory=self._memory(encoded, lora) if self.config.decoder_memory else None,
        )

    def _memory(self, encoded: InstructionStates, lora: LoraWeights | None) -> InstructionStates:
        if not self.config.memory_lora:
            return encoded
        assert encoded.tokens is not None
        return self.backbone.read(encoded.tokens, lora, keys_values=True)

    @torch.no_grad()
    def prepare(self, instruction: Tokens, dtype: torch.dtype | None = None) -> PreparedAdapter:
        """Computes everything that depends on the instructions [T, I] alone, once, to be used for many inputs.

        Args:
            instruction: Token rows of T instructions.
            dtype: Type to keep the adapter in; None keeps each tensor's own.
        """
        adapter = self.backbone.prepare(self.adapt(instruction)).detach(dtype)
        return PreparedAdapter(adapter.lora, adapter.fusion, adapter.memory, model_digest=self.digest())

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

        Raises:
            ValueError: If `adapter` is of several tasks, or was made by other weights than the present ones.
        """
        self._check_fresh(adapter)
        return merge(self.backbone.model, adapter, self.backbone.lock)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters of hypernetwork and fusion, and of the backbone where some of it trains, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Returns what training changed and must be saved: hypernetwork, fusion and trained backbone weights."""
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("backbone.")}
        return own | {name: parameter.data for name, parameter in self.trained_parameters().items()}

    def digest(self) -> str:
        """Returns a SHA-256 of hypernetwork and fusion, which marks the caches they make."""
        versions = [
            (parameter.data_ptr(), parameter._version)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or not name.startswith("backbone.")
        ]
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

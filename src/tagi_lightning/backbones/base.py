"""What the rest of the project knows of a language model.

Shapes: B examples, T tasks, I instruction tokens, S input tokens, O output tokens, d width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.data.batch import Tokens
from tagi_lightning.data.ranges import check_range
from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights
from tagi_lightning.merging import WeightsLock

Part = Literal["none", "norms_embeddings", "feed_forward", "all"]
"""Parts of a model that may train: norms and token embeddings, these and the feed-forward layers, everything."""


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are decoded; every system of a comparison uses the same."""

    max_new_tokens: int = 128
    """Longest answer in tokens (SNI: 128, P3: 64)."""
    min_new_tokens: int = 0
    """Shortest answer in tokens, for timing answers of one length."""
    num_beams: int = 1
    """Beams; 1 is greedy unless sampling."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float = 1.0
    """Softmax temperature while sampling."""
    top_p: float = 1.0
    """Nucleus mass while sampling."""
    stop_at_newline: bool = False
    """The answer is the first line that is not blank. Decoder-only models stop there and not before; others are cut
    afterwards."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer besides the model's own."""
    newline_ids: tuple[int, ...] = ()
    """Tokens that hold a line break; they follow from stop_at_newline."""
    blank_ids: tuple[int, ...] = ()
    """Tokens of white space alone; they follow from stop_at_newline."""

    def __post_init__(self) -> None:
        check_range({"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}, least=1)
        check_range({"min_new_tokens": self.min_new_tokens}, least=0, most=self.max_new_tokens)
        check_range({"temperature": self.temperature}, above=0)
        check_range({"top_p": self.top_p}, above=0, most=1)

    def with_newlines(self, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
        """Returns the configuration with the tokenizer's line breaks and white space, where answers are one line."""
        if not self.stop_at_newline:
            return self
        newlines, blanks = _newlines_and_blanks(tokenizer)
        return replace(self, newline_ids=newlines, blank_ids=blanks)

    def to_kwargs(self) -> dict[str, Any]:
        """Returns keyword arguments for Hugging Face `generate`."""
        kwargs: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens or None,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
        }
        if self.do_sample:
            kwargs |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return kwargs


@lru_cache(maxsize=4)
def _newlines_and_blanks(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    newlines = tuple(token for token, text in enumerate(texts) if "\n" in text)
    return newlines, tuple(token for token, text in enumerate(texts) if not text.strip())


class Backbone(nn.Module, ABC):
    """A language model that is conditioned by `TaskAdapter` values and by nothing else.

    Attributes:
        model: The Hugging Face model.
        name: Hub id, folder or built-in size it came from.
        lock: Held by whoever reads or changes the weights.
        stored_digest: Digest of the weights that were loaded, where they were quantised or trained since.
    """

    model: PreTrainedModel
    name: str
    lock: WeightsLock
    stored_digest: str | None = None

    def __init__(self) -> None:
        """Creates the lock."""
        super().__init__()
        self.lock = WeightsLock()

    @property
    @abstractmethod
    def width(self) -> int:
        """Hidden width d."""

    @property
    @abstractmethod
    def fusion_shape(self) -> dict[str, int]:
        """`blocks`, `width`, `heads` and `inner` of the encoder, as `EncoderFusion` takes them; 0 blocks: none."""

    @abstractmethod
    def sites(self, config: LoraConfig) -> tuple[LoraSite, ...]:
        """Lists the LoRA sites that `config` selects, in the model's order.

        Raises:
            ValueError: If a target or stack does not exist in this model.
        """

    @property
    @abstractmethod
    def prefix_sites(self) -> tuple[LoraSite, ...]:
        """Every self-attention, where a prefix of keys and values may stand; both widths are those of its keys."""

    @property
    @abstractmethod
    def feed_forwards(self) -> tuple[nn.Module, ...]:
        """The feed-forward layer of every block, without its norm."""

    @abstractmethod
    def read(self, tokens: Tokens, lora: LoraWeights | None = None, keys_values: bool = False) -> InstructionStates:
        """Reads instructions by the plain model, or under adapters of their own.

        Args:
            tokens: T instructions [T, I].
            lora: One adapter an instruction, or None.
            keys_values: Whether the keys and values that the reading leaves are needed, where the memory is a prefix.
                Elsewhere memory comes from the states, and this changes nothing.

        Returns:
            States [T, I, d] and their mask; I counts what the model puts in front.
        """

    @abstractmethod
    def forward(self, inputs: Tokens, labels: Tensor, adapter: TaskAdapter, task_index: Tensor) -> Tensor:
        """Returns teacher-forced logits.

        Args:
            inputs: Input tokens [B, S].
            labels: Targets [B, O], padded by `IGNORE_INDEX`.
            adapter: Conditioning of T tasks.
            task_index: Task of each example [B].

        Returns:
            Logits [B, O, vocabulary].
        """

    @abstractmethod
    def generate(self, inputs: Tokens, adapter: TaskAdapter, task_index: Tensor, config: GenerationConfig) -> Tensor:
        """Returns generated ids [B, at most max_new_tokens], padded on the right."""

    @abstractmethod
    def score(
        self, inputs: Tokens, choices: Tensor, choice_index: Tensor, adapter: TaskAdapter, task_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-likelihood of answer choices, reading each input once.

        Args:
            inputs: Input tokens [B, S].
            choices: All examples' choices with EOS, padded by `IGNORE_INDEX` [C, O].
            choice_index: Example each choice belongs to [C].
            adapter: Conditioning of T tasks.
            task_index: Task of each example [B].

        Returns:
            Each choice's log-likelihood summed over its tokens [C], and its number of tokens [C].
        """

    def prepare(self, adapter: TaskAdapter) -> TaskAdapter:
        """Returns `adapter` with everything the backbone computes from it alone, to be paid once for many inputs."""
        return adapter

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return int(self.model.config.vocab_size)

    def freeze(self) -> None:
        """Stops gradients to every weight of the model."""
        self.requires_grad_(False)

    def part(self, part: Part) -> dict[str, nn.Parameter]:
        """Returns the weights of a part of the model by their names in this module; those that are tied once.

        Norms are told by the names of their classes, which every family of transformers ends so.
        """
        embeddings = self.model.get_input_embeddings()
        norms = [module for module in self.model.modules() if type(module).__name__.endswith("Norm")]
        modules: dict[Part, list[nn.Module]] = {
            "none": [],
            "norms_embeddings": [embeddings, *norms],
            "feed_forward": [embeddings, *norms, *self.feed_forwards],
            "all": [self.model],
        }
        chosen = {id(parameter) for module in modules[part] for parameter in module.parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in chosen}

    def train_part(self, part: Part) -> dict[str, nn.Parameter]:
        """Lets gradients flow to a part of the model; its digest stays that of the weights that were loaded.

        Raises:
            ValueError: If the weights are stored in a type that training cannot move.
        """
        chosen = self.part(part)
        stored = {str(p.dtype) for p in self.parameters()} - {"torch.float32", "torch.float64"}
        if chosen and stored:
            raise ValueError(
                f"trained_backbone={part} trains weights of {self.name}, which is stored in "
                f"{', '.join(sorted(stored))}: load it with backbone.dtype=float32 and backbone.quantization=null"
            )
        if chosen:
            self.stored_digest = self.digest()
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def digest(self) -> str:
        """Returns a SHA-256 over names, shapes and values of all weights, the same on any device.

        Values are rounded to bfloat16, so that a copy stored in bfloat16 counts as the same backbone.
        """
        if self.stored_digest is not None:
            return self.stored_digest
        sha = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            sha.update(f"{name}{tuple(tensor.shape)}".encode())
            rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
            sha.update(rounded.view(torch.int16).numpy().data)
        return sha.hexdigest()

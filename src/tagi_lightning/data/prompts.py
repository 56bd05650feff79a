"""Prompt forms, and how their tokenised pieces become model inputs.

A prompt is assembled from pieces that are tokenised once, each on its own, and never tokenised again. T5's
SentencePiece never crosses whitespace, so its pieces begin or end at some; byte-level tokenizers give whitespace to
what follows it, so there pieces begin with it (`causal_prompts`). The assembled ids are then those of the assembled
text. Tokenizers that join a line break to the punctuation before it (Llama 3, Qwen) differ from it at the joints.
"""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.task import Demonstration


def _sentence(text: str) -> str:
    """Returns `text` stripped, with a period where it does not end in punctuation."""
    text = text.strip()
    return text if text and text[-1] in string.punctuation else f"{text}."


def fixed_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Returns the ids of a text of the form's own, in which special tokens count."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns the id of EOS.

    Raises:
        ValueError: If the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no EOS token; set eos_token in its folder")
    return int(tokenizer.eos_token_id)


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed tokens of a form, which stand around its pieces.

    Attributes:
        start: Opens an instruction.
        ending: Closes an instruction that stands alone.
        joint: Stands between instruction and input of a concatenated prompt.
        opening: Opens an input that stands alone or after an instruction that stands alone.
        cue: Closes every input.
        stop: Ends every target.
    """

    start: tuple[int, ...]
    ending: tuple[int, ...]
    joint: tuple[int, ...]
    opening: tuple[int, ...]
    cue: tuple[int, ...]
    stop: int

    @classmethod
    def encoder_decoder(cls, connection: Sequence[int], cue: Sequence[int], eos_id: int) -> Self:
        """Returns the frame of a T5, whose every row ends with EOS."""
        return cls((), (eos_id,), tuple(connection), (), (*cue, eos_id), eos_id)

    @classmethod
    def causal(
        cls, start: Sequence[int], ending: Sequence[int], opening: Sequence[int], cue: Sequence[int], stop: int
    ) -> Self:
        """Returns the frame of a decoder-only model, whose concatenated prompt is instruction and input in a row."""
        return cls(tuple(start), tuple(ending), (*ending, *opening), tuple(opening), tuple(cue), stop)


class Form(ABC):
    """The text of each piece of a prompt, and how it is tokenised."""

    VERSION: ClassVar[int]
    """Enters the key of every token cache: raise it with every change of the text or of its tokens."""

    @abstractmethod
    def definition(self, text: str) -> str:
        """Returns the piece that states the task."""

    @abstractmethod
    def demonstration(self, number: int, demonstration: Demonstration) -> str:
        """Returns the piece of the `number`-th demonstration, counted from 1."""

    @abstractmethod
    def input(self, text: str) -> str:
        """Returns an instance's text as it stands in every prompt, without the cue."""

    def target(self, text: str) -> str:
        """Returns a reference or an answer choice as it follows the cue."""
        return text

    def tokenize(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
        """Returns the ids of pieces that come from data."""
        # verbose=False: the tokenizer's own length limit is not ours.
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    @abstractmethod
    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        """Returns the tokens around the pieces."""

    @abstractmethod
    def identity(self, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Returns all that decides the pieces and their frame, beside the tokenizer's own cutting, for JSON."""


@dataclass(frozen=True, slots=True)
class PromptForm(Form):
    """Tk-Instruct's text, for encoder-decoder models.

    Attributes:
        connection: Stands between the instruction and the input of a concatenated prompt.
        cue: Follows every input, concatenated or bare.
    """

    VERSION: ClassVar[int] = 1

    connection: str = "Now complete the following example -\nInput: "
    cue: str = "\nOutput: "

    def definition(self, text: str) -> str:
        """Returns the piece that states the task."""
        return f"Definition: {_sentence(text)}\n\n"

    def demonstration(self, number: int, demonstration: Demonstration) -> str:
        """Returns the piece of the `number`-th demonstration, counted from 1."""
        shown = f"Input: {_sentence(demonstration.input)}\nOutput: {_sentence(demonstration.output)}"
        return f"Positive Example {number} -\n{shown}\n\n"

    def input(self, text: str) -> str:
        """Returns an instance's text as it stands in every prompt, without the cue."""
        return _sentence(text)

    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        """Returns the tokens around the pieces."""
        connection, cue = (fixed_ids(tokenizer, text) for text in (self.connection, self.cue))
        return Frame.encoder_decoder(connection, cue, eos_id(tokenizer))

    def identity(self, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Returns class, version and text."""
        return [type(self).__name__, self.VERSION, self.connection, self.cue]


@dataclass(frozen=True, slots=True)
class PlainForm(PromptForm):
    """Texts as they are, for templates that say all there is to say (P3)."""

    connection: str = ""
    cue: str = ""

    def definition(self, text: str) -> str:
        """Returns the text."""
        return text

    def demonstration(self, number: int, demonstration: Demonstration) -> str:
        """Returns a filled-in prompt with its target."""
        return f"{demonstration.input}\n{demonstration.output}\n\n"

    def input(self, text: str) -> str:
        """Returns the text."""
        return text


@dataclass(frozen=True, slots=True)
class PromptAssembler:
    """Joins tokenised pieces into instruction, input, prompt and target, within the length limits.

    Attributes:
        frame: What stands around the pieces.
        max_demonstrations: How many demonstrations an instruction shows at most.
        max_input_length: Limit of instructions, inputs and concatenated prompts, the frame included.
        max_output_length: Limit of targets, the end token included.
    """

    frame: Frame
    max_demonstrations: int
    max_input_length: int = 1024
    max_output_length: int = 128

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        max_demonstrations: int,
        max_input_length: int = 1024,
        max_output_length: int = 128,
        form: Form | None = None,
    ) -> Self:
        """Returns an assembler with the frame of `form`, by default Tk-Instruct's for T5."""
        frame = (form or PromptForm()).frame(tokenizer)
        return cls(frame, max_demonstrations, max_input_length, max_output_length)

    def demonstrations_that_fit(self, lengths: Sequence[int], room: int) -> int:
        """Returns how many leading demonstrations of these `lengths` fit into `room` tokens.

        A demonstration that does not fit is dropped together with all that follow it.
        """
        for count, length in enumerate(lengths[: self.max_demonstrations]):
            room -= length
            if room < 0:
                return count
        return min(len(lengths), self.max_demonstrations)

    def instruction_room(self, definition_length: int) -> int:
        """Returns how many tokens of demonstrations fit into an instruction with a definition of this length."""
        return self.max_input_length - len(self.frame.start) - definition_length - len(self.frame.ending)

    def fitting(self, demonstrations: Iterable[list[int]]) -> list[list[int]]:
        """Returns the demonstrations that fit into an instruction without definition."""
        room = self.instruction_room(0)
        return [piece for piece in demonstrations if len(piece) <= room]

    def input_room(self, definition_length: int = 0) -> int:
        """Returns how many tokens of instance text fit beside what stands around it.

        Args:
            definition_length: Tokens of the definition in a concatenated prompt, 0 for a bare input.
        """
        frame = self.frame
        before = len(frame.start) + definition_length + len(frame.joint) if definition_length else len(frame.opening)
        return self.max_input_length - before - len(frame.cue)

    def instruction(self, definition: Sequence[int], demonstrations: Sequence[Sequence[int]]) -> list[int]:
        """Returns the hypernetwork's instruction, the paper's a: the definition and the demonstrations that fit."""
        room = self.instruction_room(len(definition))
        shown = self.demonstrations_that_fit([len(piece) for piece in demonstrations], room)
        return [*self.frame.start, *definition, *_chain(demonstrations[:shown]), *self.frame.ending]

    def input(self, text: Sequence[int]) -> list[int]:
        """Returns the bare input, the paper's b: instance text, truncated where it must be, and output cue."""
        return [*self.frame.opening, *text[: self.input_room()], *self.frame.cue]

    def prompt(
        self, definition: Sequence[int], demonstrations: Sequence[Sequence[int]], text: Sequence[int]
    ) -> list[int]:
        """Returns the concatenated prompt, the paper's (a;b), by Tk-Instruct's rule.

        It shows the demonstrations that fit together with this input; without any, the input is truncated.
        """
        room = self.input_room(len(definition))
        shown = self.demonstrations_that_fit([len(piece) for piece in demonstrations], room - len(text))
        return [
            *self.frame.start,
            *definition,
            *_chain(demonstrations[:shown]),
            *self.frame.joint,
            *text[:room],
            *self.frame.cue,
        ]

    def demonstrated(self, demonstrations: Sequence[Sequence[int]], prompt: Sequence[int]) -> list[int]:
        """Returns a complete prompt, truncated where it must be, behind the demonstrations that fit beside it."""
        room = self.input_room()
        shown = self.demonstrations_that_fit([len(piece) for piece in demonstrations], room - len(prompt))
        return [*self.frame.opening, *_chain(demonstrations[:shown]), *prompt[:room], *self.frame.cue]

    def target(self, reference: Sequence[int]) -> list[int]:
        """Returns a target, the paper's c, truncated where it must be, with its end token."""
        return [*reference[: self.max_output_length - 1], self.frame.stop]


def _chain(pieces: Sequence[Sequence[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]

"""The prompt form of Tk-Instruct, and how its tokenised pieces become model inputs.

A prompt is assembled from pieces that are tokenised once, each on its own, and never tokenised
again. Every piece ends or begins at whitespace, which T5's SentencePiece never crosses, so the
assembled ids are those of the assembled text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.task import Demonstration


def _sentence(text: str) -> str:
    """Returns `text` stripped, with a period where it does not end in punctuation."""
    text = text.strip()
    return text if text and text[-1] in string.punctuation else f"{text}."


@dataclass(frozen=True, slots=True)
class PromptForm:
    """The text of each piece of a prompt.

    Attributes:
        connection: Stands between the instruction and the input of a concatenated prompt.
        cue: Follows every input, concatenated or bare.
    """

    VERSION: ClassVar[int] = 1
    """Enters the key of every token cache: raise it with every change of the text."""

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
        connection: Ids of the form's connection.
        cue: Ids of the form's cue.
        eos_id: Id that ends every sequence.
        max_demonstrations: How many demonstrations an instruction shows at most.
        max_input_length: Limit of encoder inputs, EOS included.
        max_output_length: Limit of targets, EOS included.
    """

    connection: tuple[int, ...]
    cue: tuple[int, ...]
    eos_id: int
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
        form: PromptForm | None = None,
    ) -> Self:
        """Returns an assembler with the fixed pieces of `form`, by default the current one, tokenised."""
        form = form or PromptForm()
        connection, cue = tokenizer([form.connection, form.cue], add_special_tokens=False)["input_ids"]
        eos_id = tokenizer.eos_token_id
        return cls(tuple(connection), tuple(cue), eos_id, max_demonstrations, max_input_length, max_output_length)

    def demonstrations_that_fit(self, lengths: Sequence[int], room: int) -> int:
        """Returns how many leading demonstrations of these `lengths` fit into `room` tokens.

        A demonstration that does not fit is dropped together with all that follow it.
        """
        for count, length in enumerate(lengths[: self.max_demonstrations]):
            room -= length
            if room < 0:
                return count
        return min(len(lengths), self.max_demonstrations)

    def input_room(self, definition_length: int = 0) -> int:
        """Returns how many tokens of instance text fit beside a cue and EOS.

        Args:
            definition_length: Tokens of the definition in a concatenated prompt, 0 for a bare input.
        """
        fixed = definition_length + (len(self.connection) if definition_length else 0) + len(self.cue) + 1
        return self.max_input_length - fixed

    def instruction(self, definition: Sequence[int], demonstrations: Sequence[Sequence[int]]) -> list[int]:
        """Returns the hypernetwork's instruction, the paper's a: the definition and the demonstrations that fit."""
        room = self.max_input_length - len(definition) - 1
        shown = self.demonstrations_that_fit([len(piece) for piece in demonstrations], room)
        return [*definition, *_chain(demonstrations[:shown]), self.eos_id]

    def input(self, text: Sequence[int]) -> list[int]:
        """Returns the bare input, the paper's b: instance text, truncated where it must be, and output cue."""
        return [*text[: self.input_room()], *self.cue, self.eos_id]

    def prompt(
        self, definition: Sequence[int], demonstrations: Sequence[Sequence[int]], text: Sequence[int]
    ) -> list[int]:
        """Returns the concatenated prompt, the paper's (a;b), by Tk-Instruct's rule.

        It shows the demonstrations that fit together with this input; without any, the input is truncated.
        """
        room = self.input_room(len(definition))
        shown = self.demonstrations_that_fit([len(piece) for piece in demonstrations], room - len(text))
        return [
            *definition,
            *_chain(demonstrations[:shown]),
            *self.connection,
            *text[:room],
            *self.cue,
            self.eos_id,
        ]

    def complete(self, prompt: Sequence[int]) -> list[int]:
        """Returns a prompt that is complete as it is, truncated where it must be, with EOS."""
        return [*prompt[: self.max_input_length - 1], self.eos_id]

    def target(self, reference: Sequence[int]) -> list[int]:
        """Returns a target, the paper's c, truncated where it must be, with EOS."""
        return [*reference[: self.max_output_length - 1], self.eos_id]


def _chain(pieces: Sequence[Sequence[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]

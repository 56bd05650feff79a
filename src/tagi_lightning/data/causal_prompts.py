"""Prompt forms for decoder-only models: plain text, and the tokenizer's own chat template."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.chat_template import ChatTurns
from tagi_lightning.data.prompts import Form, Frame, PromptForm, eos_id, fixed_ids
from tagi_lightning.data.task import Demonstration

PromptKind = Literal["t5", "causal", "chat"]
"""t5 for encoder-decoder models; causal (plain text) and chat (the tokenizer's template) for decoder-only ones."""


@dataclass(frozen=True, slots=True)
class CausalForm(Form):
    """A form's text for decoder-only models, with whitespace at the beginning of pieces instead of at their end.

    Nothing but targets ends with EOS, and the concatenated prompt is instruction and input in a row: the
    input's ids are the very same alone, after a prefix and in the prompt. Special tokens in the data stay text.

    Attributes:
        texts: The form whose text it is.
    """

    VERSION: ClassVar[int] = 1
    SEPARATOR: ClassVar[str] = "\n\n"
    """Stands between definition, demonstrations and input."""

    texts: PromptForm = PromptForm()  # noqa: RUF009  (frozen)

    def definition(self, text: str) -> str:
        """Returns the piece that states the task."""
        return self.texts.definition(text).rstrip()

    def demonstration(self, number: int, demonstration: Demonstration) -> str:
        """Returns the piece of the `number`-th demonstration, counted from 1."""
        return self.SEPARATOR + self.texts.demonstration(number, demonstration).rstrip()

    def input(self, text: str) -> str:
        """Returns an instance's text as it stands in every prompt, with the space before it."""
        space = " " if self.texts.connection.endswith(" ") else ""
        return space + self.texts.input(text)

    def target(self, text: str) -> str:
        """Returns a reference or an answer choice, stripped, with the space before it."""
        return f" {text.strip()}"

    def tokenize(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
        """Returns the ids of pieces that come from data, in which no text is a special token."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return tokenizer(texts, **options)["input_ids"] if texts else []

    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        """Returns the tokens around the pieces."""
        opening = fixed_ids(tokenizer, self.texts.connection.rstrip())
        joint = fixed_ids(tokenizer, self.SEPARATOR + self.texts.connection.rstrip())
        # how a run of line breaks is cut depends on what follows it
        ending = joint[: len(joint) - len(opening)]
        return Frame.causal((), ending, opening, fixed_ids(tokenizer, self.texts.cue.rstrip()), eos_id(tokenizer))

    def identity(self, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Returns class, version and text."""
        return [type(self).__name__, self.VERSION, self.SEPARATOR, *self.texts.identity(tokenizer)]


@dataclass(frozen=True, slots=True)
class ChatForm(CausalForm):
    """The tokenizer's chat template: the instruction is the system turn, the input the user's, the target the answer.

    The input alone is a chat without system turn, also where the template would put a default one.
    """

    def target(self, text: str) -> str:
        """Returns a reference or an answer choice, stripped."""
        return text.strip()

    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        """Returns the template's tokens and the form's.

        Raises:
            ValueError: If the tokenizer's template does not serve.
        """
        turns = ChatTurns.from_tokenizer(tokenizer)
        opening = turns.opening + self.texts.connection.rstrip()
        cue = self.texts.cue.rstrip() + turns.cue
        start, ending, opening_ids, cue_ids = (
            fixed_ids(tokenizer, text) for text in (turns.start, turns.ending, opening, cue)
        )
        return Frame.causal(start, ending, opening_ids, cue_ids, turns.stop)

    def identity(self, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Returns class, version, text and the template's digest."""
        template = json.dumps(tokenizer.chat_template, sort_keys=True).encode()
        return [*CausalForm.identity(self, tokenizer), hashlib.sha256(template).hexdigest()]


def prompt_form(kind: PromptKind, texts: PromptForm) -> Form:
    """Returns the form of a task set's `texts` for one kind of model."""
    forms: dict[PromptKind, Form] = {"t5": texts, "causal": CausalForm(texts), "chat": ChatForm(texts)}
    if kind not in forms:
        raise ValueError(f"prompt={kind!r} is unknown, allowed: {', '.join(forms)}")
    return forms[kind]

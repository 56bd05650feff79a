"""The turns of a tokenizer's own chat template, found by rendering it around placeholders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.report import shortened

_SYSTEM, _USER, _ASSISTANT = "placeholder-1", "placeholder-2", "placeholder-3"


@dataclass(frozen=True, slots=True)
class ChatTurns:
    """What a chat template writes around the texts of a conversation.

    Attributes:
        start: Opens the system turn, and with it the conversation; without BOS where the tokenizer prepends it itself.
        ending: Closes the system turn.
        opening: Opens a user turn.
        cue: Closes a user turn and opens the assistant's.
        stop: Id of the token that ends the assistant's turn.
    """

    start: str
    ending: str
    opening: str
    cue: str
    stop: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> ChatTurns:
        """Returns the turns of the tokenizer's template; thinking, where the template offers it, is off.

        Raises:
            ValueError: If there is no template, it has no system role, or its turns cannot be told apart.
        """
        if tokenizer.chat_template is None:
            _refuse(tokenizer, "has no chat template")
        try:
            alone = _render(tokenizer, False, system=_SYSTEM)
            asked = _render(tokenizer, True, system=_SYSTEM, user=_USER)
            answered = _render(tokenizer, False, system=_SYSTEM, user=_USER, assistant=_ASSISTANT)
        except Exception as error:  # a template runs, and raises whatever it meets
            reason = shortened(" ".join(str(error).split())) or type(error).__name__
            _refuse(tokenizer, f"has a chat template that takes no system turn ({reason})")
        start, middle, cue = _cut(tokenizer, asked, _SYSTEM, _USER)
        _, ending = _cut(tokenizer, alone, _SYSTEM)
        *_, after = _cut(tokenizer, answered, _SYSTEM, _USER, _ASSISTANT)
        opening = middle.removeprefix(ending)
        if not opening or not middle.startswith(ending):
            _refuse(tokenizer, "has a chat template whose system turn goes on into the user's")
        if prepends_bos(tokenizer):
            start = start.removeprefix(str(tokenizer.bos_token))
        return cls(start, ending, opening, cue, _stop(tokenizer, after))


def prepends_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer puts BOS in front of every text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _render(tokenizer: PreTrainedTokenizerFast, ask: bool, **texts: str) -> str:
    turns = [{"role": role, "content": text} for role, text in texts.items()]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask, enable_thinking=False)
    assert isinstance(rendered, str)
    return rendered


def _cut(tokenizer: PreTrainedTokenizerFast, rendered: str, *placeholders: str) -> list[str]:
    """Returns what stands around the placeholders, each of which must be there once, in this order."""
    parts = []
    for placeholder in placeholders:
        if rendered.count(placeholder) != 1:
            _refuse(tokenizer, "has a chat template that moves a turn or leaves one out, perhaps the system's")
        before, _, rendered = rendered.partition(placeholder)
        parts.append(before)
    return [*parts, rendered]


def _stop(tokenizer: PreTrainedTokenizerFast, after: str) -> int:
    """Returns the first special token of what the template writes after an answer."""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = [token for token in ids if token in tokenizer.all_special_ids or _is_special(tokenizer, token)]
    if not special:
        _refuse(tokenizer, "has a chat template that ends an answer without a special token")
    return int(special[0])


def _is_special(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return added is not None and added.special


def _refuse(tokenizer: PreTrainedTokenizerFast, reason: str) -> NoReturn:
    raise ValueError(
        f"tokenizer {tokenizer.name_or_path} {reason}; prompt=chat needs a template with separate turns for system, "
        "user and assistant: take prompt=causal"
    )

"""Tokenizers as this project needs them."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tagi_lightning.data.report import shortened
from tagi_lightning.data.source import SourceError, find_source

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")
"""Files one of which every tokenizer folder has; without any, transformers makes up a vocabulary."""

ADVICE = (
    "A tokenizer lies with its model: copy the model's own tokenizer.json and tokenizer_config.json (of a T5 "
    "spiece.model) into that folder, or give a hub id that is reachable or cached."
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says why and what to do."""


def check_tokenizer(name: str) -> str:
    """Returns the folder or hub id of a tokenizer after looking whether it is there, without loading it.

    Raises:
        TokenizerError: If it is not.
    """
    try:
        return find_source(name, TOKENIZER_FILES)
    except SourceError as error:
        raise TokenizerError(f"no tokenizer: {error}\n{ADVICE}") from error


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub id, of whatever kind.

    Raises:
        TokenizerError: If it is not there or damaged.
    """
    source = check_tokenizer(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the `tokenizers` library raises its own type without a common base
        raise TokenizerError(
            f"the tokenizer {name} does not load ({shortened(str(error))}); get its files again"
        ) from error
    return tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a folder or hub id.

    Raises:
        TokenizerError: If it is not there, damaged, not one of the `tokenizers` library, or has no padding token.
    """
    tokenizer = read_tokenizer(name)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(f"{name} is no fast tokenizer: give one with a tokenizer.json")
    if tokenizer.pad_token_id is None:
        raise TokenizerError(
            f'{name} has no padding token: name one as pad_token in its tokenizer_config.json, e.g. "pad_token": '
            f"{str(tokenizer.eos_token)!r}, which batches only ever mask"
        )
    return tokenizer

"""Tokenizers as this project needs them."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerFast


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a folder or hub id.

    Raises:
        ValueError: If it is not one of the `tokenizers` library, or has no padding token.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{name} is no fast tokenizer: give one with a tokenizer.json")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f'{name} has no padding token: name one as pad_token in its tokenizer_config.json, e.g. "pad_token": '
            f"{str(tokenizer.eos_token)!r}, which batches only ever mask"
        )
    return tokenizer

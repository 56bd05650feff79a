"""Tokenizers as this project needs them."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tagi_lightning.data.report import shortened


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a folder or hub id.

    Raises:
        OSError: If it is not there.
        ValueError: If it is damaged, not one of the `tokenizers` library, or has no padding token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError:
        raise
    except Exception as error:  # the `tokenizers` library raises its own type without a common base
        raise ValueError(f"the tokenizer {name} is damaged ({shortened(str(error))}); get its files again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{name} is no fast tokenizer: give one with a tokenizer.json")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f'{name} has no padding token: name one as pad_token in its tokenizer_config.json, e.g. "pad_token": '
            f"{str(tokenizer.eos_token)!r}, which batches only ever mask"
        )
    return tokenizer

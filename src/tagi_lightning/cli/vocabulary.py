"""`tagi vocabulary`: trains a T5 tokenizer on plain text, for a backbone from scratch."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonargparse


def vocabulary(corpora: list[str], folder: str, size: int = 8000) -> None:
    """Train a SentencePiece vocabulary on plain text and save it as a T5 tokenizer.

    Args:
        corpora: Files of plain text (.txt, or .jsonl with a `text` in each row) or folders of them.
        folder: Where to save the tokenizer; must not exist.
        size: Pieces in the vocabulary, the hundred sentinels not counted.
    """
    from tagi_lightning.data.text import corpus_files, read_documents
    from tagi_lightning.data.vocabulary import train_vocabulary

    if Path(folder).exists():
        raise FileExistsError(f"{folder} is already there; remove it or choose another folder")
    files = corpus_files([Path(path) for path in corpora])
    train_vocabulary((text for file in files for text in read_documents(file)), Path(folder), vocab_size=size)
    print(f"the tokenizer is in {folder}")


def main(args: list[str]) -> int:
    """Runs `tagi vocabulary`; returns the exit code."""
    from tagi_lightning.data.report import DataError

    try:
        jsonargparse.auto_cli(vocabulary, args=args, as_positional=False, prog="tagi vocabulary", allow_abbrev=False)
    except (DataError, OSError, RuntimeError) as error:
        print(f"tagi vocabulary: {error}", file=sys.stderr)
        return 1
    return 0

"""`tagi vocabulary`: trains a T5 tokenizer on plain text, for a backbone from scratch."""

from __future__ import annotations

from pathlib import Path

from tagi_lightning.cli.command import options_of


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


main = options_of(vocabulary)

"""Training a SentencePiece vocabulary and saving it as a T5 tokenizer folder."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Tokenizer

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"

MODEL_MAX_LENGTH = 1_000_000
"""Lengths are cut by the readers, never by the tokenizer."""


def train_vocabulary(
    texts: Iterable[str], folder: Path, *, vocab_size: int, sentinels: int = 100, words: Iterable[str] = ()
) -> None:
    """Trains a unigram vocabulary on `texts` and writes a folder that AutoTokenizer loads as a T5 tokenizer.

    Ids are pad 0, eos 1, unk 2, the pieces, then `<extra_id_{sentinels-1}>` down to `<extra_id_0>`, as in T5.
    The result is a function of `texts` and the arguments alone.

    Args:
        texts: Lines of text.
        folder: Where to write the tokenizer files.
        vocab_size: Greatest number of pieces, without sentinels; a small corpus gives fewer.
        sentinels: Number of `<extra_id_...>` tokens.
        words: Words that each get a piece of their own.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=[f"▁{word}" for word in words],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece=PAD,
        eos_piece=EOS,
        unk_piece=UNK,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.getvalue())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    pieces += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(sentinels))]
    tokenizer = T5Tokenizer(
        vocab=pieces,
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        extra_ids=sentinels,
        model_max_length=MODEL_MAX_LENGTH,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)

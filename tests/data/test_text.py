"""Documents, their cache, sequences and batches of plain text."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tagi_lightning.data.report import DataError
from tagi_lightning.data.text import (
    TextBatchSampler,
    TextSequences,
    TokenizedText,
    cache_key,
    corpus_files,
    load_or_tokenize_text,
    read_documents,
    split_documents,
)
from tagi_lightning.data.tokenized import ExampleIndex
from tagi_lightning.data.vocabulary import train_vocabulary

PARAGRAPHS = ["one red cat\nruns home", "two dogs", "three small birds sing to you"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(PARAGRAPHS, folder, vocab_size=60)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("\ufeff\n\n" + "\n \n\n".join(PARAGRAPHS) + "\n\n", encoding="utf-8")
    rows = [json.dumps({"text": "a cat"}), json.dumps({"text": "  "}), json.dumps({"text": "a\n\ndog", "url": "x"})]
    (folder / "deep" / "b.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "notes.md").write_text("no text")
    return folder


def test_documents_are_paragraphs_files_or_rows(corpus: Path):
    files = corpus_files([corpus])
    assert [file.name for file in files] == ["a.txt", "b.jsonl"]
    assert list(read_documents(files[0])) == PARAGRAPHS
    (whole,) = read_documents(files[0], "file")
    assert whole.split() == " ".join(PARAGRAPHS).split()
    assert list(read_documents(files[1])) == ["a cat", "a\n\ndog"]


def test_bad_corpora_are_named_together(corpus: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        corpus_files([tmp_path / "absent.txt", corpus / "notes.md", tmp_path / "empty", corpus])
    assert all(name in str(error.value) for name in ("absent.txt", "notes.md", "empty"))
    with pytest.raises(DataError, match="no corpus"):
        corpus_files([])


@pytest.mark.parametrize("row", ["not json", "[]", '{"txt": "a"}', '{"text": 3}'])
def test_a_bad_row_is_named(tmp_path: Path, row: str):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{row}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_documents(file))


def test_text_of_another_encoding_is_named(tmp_path: Path):
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt[\s\S]*UTF-8"):
        list(read_documents(file))


def test_the_cache_holds_each_document_and_is_used_again(
    corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    text = load_or_tokenize_text([corpus], tokenizer, tmp_path / "cache")
    documents = [document for file in corpus_files([corpus]) for document in read_documents(file)]
    assert len(text) == len(documents)
    for place, document in enumerate(documents):
        ids = text.tokens[text.offsets[place] : text.offsets[place + 1]].tolist()
        assert ids == tokenizer(document, add_special_tokens=False).input_ids
    (folder,) = (tmp_path / "cache").iterdir()
    written = (folder / "tokens.npy").stat().st_mtime_ns
    again = load_or_tokenize_text([corpus], tokenizer, tmp_path / "cache")
    assert (folder / "tokens.npy").stat().st_mtime_ns == written
    assert np.array_equal(again.tokens, text.tokens)


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-3])])
def test_a_damaged_cache_is_told_and_made_again(
    corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys, name: str, harm
):
    text = load_or_tokenize_text([corpus], tokenizer, tmp_path / "cache")
    expected = text.tokens.tolist(), text.offsets.tolist()
    (folder,) = (tmp_path / "cache").iterdir()
    harm(folder / name)
    again = load_or_tokenize_text([corpus], tokenizer, tmp_path / "cache")
    assert (again.tokens.tolist(), again.offsets.tolist()) == expected
    assert f"{folder} is damaged; its text is tokenised again" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_the_cache_key_follows_contents_tokenizer_and_unit(
    corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    files = corpus_files([corpus])
    train_vocabulary(PARAGRAPHS, tmp_path / "other", vocab_size=60, sentinels=5)
    keys = [cache_key(files, tokenizer, "paragraph"), cache_key(files, tokenizer, "file")]
    keys.append(cache_key(files, AutoTokenizer.from_pretrained(tmp_path / "other"), "paragraph"))
    tokenizer("cat", padding="max_length", max_length=8, truncation=True)
    assert cache_key(files, tokenizer, "paragraph") == keys[0]
    files[0].write_text("another text")
    keys.append(cache_key(files, tokenizer, "paragraph"))
    assert len(set(keys)) == 4


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    max_length=st.integers(1, 20),
    min_length=st.integers(1, 5),
)
def test_sequences_partition_documents(lengths: list[int], max_length: int, min_length: int):
    text = TokenizedText(np.arange(sum(lengths), dtype=np.int32), np.cumsum([0, *lengths]))
    documents = np.arange(0, len(lengths), 2)
    sequences = TextSequences.cut(text, documents, max_length, min_length)
    expected = [
        list(range(begin, min(begin + max_length, int(text.offsets[document + 1]))))
        for document in documents
        for begin in range(int(text.offsets[document]), int(text.offsets[document + 1]), max_length)
    ]
    found = [sequences[ExampleIndex(0, place, 0)][1] for place in range(len(sequences))]
    assert found == [ids for ids in expected if len(ids) >= min_length]
    assert sequences.lengths.tolist() == [len(ids) for ids in found]


@given(count=st.integers(2, 300), share=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_held_out_documents_are_apart(count: int, share: float, seed: int):
    train, held_out = split_documents(count, share, seed)
    assert sorted([*train, *held_out]) == list(range(count))
    assert min(len(train), len(held_out)) >= 1


def test_one_document_cannot_be_split():
    with pytest.raises(ValueError, match="1 document"):
        split_documents(1, 0.1, 0)


@given(count=st.integers(1, 80), batch_size=st.integers(1, 9), pool=st.integers(1, 4), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sequence_once(count: int, batch_size: int, pool: int, epoch: int):
    lengths = np.random.default_rng(0).integers(3, 30, count)
    sampler = TextBatchSampler(lengths, batch_size, 0, pool)
    batches = sampler.plan(epoch)
    assert sorted(index.instance for batch in batches for index in batch) == list(range(count))
    assert len(batches) == len(sampler)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert {index.epoch for batch in batches for index in batch} == {epoch}
    assert batches == TextBatchSampler(lengths, batch_size, 0, pool).plan(epoch)


def test_epochs_and_seeds_differ_and_evaluation_does_not():
    lengths = np.full(50, 5)
    assert TextBatchSampler(lengths, 4, 0).plan(0) != TextBatchSampler(lengths, 4, 0).plan(1)
    assert TextBatchSampler(lengths, 4, 0).plan(0) != TextBatchSampler(lengths, 4, 1).plan(0)
    assert TextBatchSampler(lengths, 4, None).plan(0) == TextBatchSampler(lengths, 4, None).plan(1)


def test_lengths_within_a_batch_are_alike():
    lengths = np.random.default_rng(0).integers(3, 1000, 4000)
    spread = [np.ptp(lengths[[index.instance for index in batch]]) for batch in TextBatchSampler(lengths, 8, 0).plan(0)]
    assert np.mean(spread) < 50


@pytest.mark.realdata
def test_real_corpora_tokenise(tmp_path: Path):
    data, folder = os.environ.get("TAGI_DATA"), os.environ.get("TAGI_TOKENIZER")
    if not data or not folder:
        pytest.skip("TAGI_DATA or TAGI_TOKENIZER names no folder of real data")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    novel = min((Path(data) / "corpora" / "english_novels_subset").glob("*.txt"), key=lambda path: path.stat().st_size)
    text = load_or_tokenize_text([novel], tokenizer, tmp_path, "file")
    assert len(text) == 1
    assert text.offsets[-1] == len(text.tokens) > 10_000
    start = tokenizer.decode(text.tokens[:20].tolist())
    assert " ".join(novel.read_text(encoding="utf-8-sig").split()).startswith(start[:20])

"""A trained vocabulary loads as a T5 tokenizer and keeps the synthetic set's words whole."""

import hashlib
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from tagi_lightning.data.prompts import PromptForm
from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.vocabulary import train_vocabulary

LINES = [
    f"the {colour} {thing} is here: {number}."
    for colour in ("red", "blue")
    for thing in ("cat", "dogs")
    for number in range(9)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / "data"
    write_synthetic(folder, SyntheticConfig(train_instances=2, test_instances=2, documents_per_task=2))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def test_loads_as_a_t5_tokenizer(tokenizer: PreTrainedTokenizerFast):
    assert isinstance(tokenizer, T5Tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)]
    assert len(set(sentinels)) == 100
    assert tokenizer.unk_token_id not in sentinels
    assert tokenizer("cat <extra_id_0> dog").input_ids[1] == sentinels[0]
    assert tokenizer.model_max_length > 100_000
    assert tokenizer("cat").input_ids[-1] == tokenizer.eos_token_id


def test_every_word_is_one_piece_and_texts_come_back(folder: Path, tokenizer: PreTrainedTokenizerFast):
    for text in (folder / "corpus" / "train.txt").read_text().strip().split("\n\n"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        words = text.replace(".", " .").replace(":", " :").split()
        assert len(ids) == len(words)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_prompt_form_has_no_unknown_piece(tokenizer: PreTrainedTokenizerFast):
    form = PromptForm()
    demonstration = form.demonstration(2, Demonstration("cat red", "cat"))
    prompt = (
        form.definition("write the first animal") + demonstration + form.connection + form.input("red dog") + form.cue
    )
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert len(ids) <= 1.6 * len(prompt.split())
    assert tokenizer.decode(ids) == " ".join(prompt.split())


def test_training_is_deterministic(tmp_path: Path):
    found = []
    for name in ("one", "two"):
        train_vocabulary(iter(LINES), tmp_path / name, vocab_size=40)
        files = sorted((tmp_path / name).iterdir())
        found.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert found[0] == found[1]


def test_size_sentinels_words_and_normalisation(tmp_path: Path):
    train_vocabulary(LINES, tmp_path, vocab_size=40, sentinels=7, words=["zebra"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 40 + 7
    assert tokenizer.tokenize("zebra") == ["▁zebra"]
    assert "<extra_id_7>" not in tokenizer.get_vocab()
    assert tokenizer.tokenize("ﬁve  red") == tokenizer.tokenize("five red")


@pytest.mark.realdata
@pytest.mark.slow
def test_real_text_comes_back(tmp_path: Path):
    data = os.environ.get("TAGI_DATA")
    if not data:
        pytest.skip("TAGI_DATA names no folder of real data")
    lines = (Path(data) / "corpora/sgd_dialogue/sgd_every4th.txt").read_text(encoding="utf-8").splitlines()[:5000]
    train_vocabulary(lines, tmp_path, vocab_size=2000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 2100
    for line in lines[:100]:
        ids = tokenizer(line, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(line.split())

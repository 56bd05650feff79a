import os

import pytest
from transformers import AutoTokenizer

from tagi_lightning.data import reading
from tagi_lightning.data.prompts import PlainForm
from tagi_lightning.data.reading import load_or_read, read_key
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.task import Demonstration, Instance, Task, TaskSplits
from tagi_lightning.data.tokenized import ExampleIndex
from tagi_lightning.data.vocabulary import train_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(
        ["Definition Input Output: say the first word - apple pear plum fig ?."] * 3, folder, vocab_size=60
    )
    return AutoTokenizer.from_pretrained(folder)


class Reader:
    """Reads one word a file, and counts how often it is asked."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = 0

    @property
    def files(self):
        return list(self.folder.glob("*.txt"))

    def __call__(self, report):
        self.calls += 1
        report.note("row left out", f"call {self.calls}")
        tasks = [
            Task(file.stem, "words", ("Say it",), (Demonstration("fig", "fig"),), (Instance("0", word, (word,)),))
            for file in sorted(self.files)
            for word in [file.read_text()]
        ]
        return TaskSplits(tasks[:1], (), tasks[1:])


@pytest.fixture
def reader(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, word in (("one", "apple"), ("two", "pear")):
        (folder / f"{name}.txt").write_text(word)
    return Reader(folder)


def start(reader, tokenizer, tmp_path, report=None, form=None, **options):
    report = report or DataReport("data")
    return load_or_read(reader, reader.files, options, report, tokenizer, tmp_path / "cache", form)


def test_second_start_reads_nothing_and_has_and_tells_the_same(reader, tokenizer, tmp_path):
    reports = [DataReport("data"), DataReport("data")]
    first, second = (start(reader, tokenizer, tmp_path, report) for report in reports)
    assert reader.calls == 1
    assert list(first) == list(second) == ["train", "test"]
    assert second["train"].tasks == first["train"].tasks
    assert second["test"][ExampleIndex(0, 0, None)] == first["test"][ExampleIndex(0, 0, None)]
    assert reports[0].notes == reports[1].notes == {"row left out": ["call 1"]}


def change_byte(reader):
    file = reader.folder / "two.txt"
    before = file.stat()
    file.write_text("bear")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def add_file(reader):
    (reader.folder / "three.txt").write_text("plum")


def remove_file(reader):
    (reader.folder / "two.txt").unlink()


def rename_file(reader):
    (reader.folder / "two.txt").rename(reader.folder / "too.txt")


@pytest.mark.parametrize("change", [change_byte, add_file, remove_file, rename_file])
def test_a_change_of_the_files_is_seen_whatever_their_times_and_sizes(reader, tokenizer, tmp_path, change):
    start(reader, tokenizer, tmp_path)
    change(reader)
    found = start(reader, tokenizer, tmp_path)
    assert reader.calls == 2
    words = {file.stem: file.read_text() for file in reader.files}
    read = {
        task.name: tokens[ExampleIndex(n, 0, None)].text
        for tokens in found.values()
        for n, task in enumerate(tokens.tasks)
    }
    assert read == words


def test_options_and_prompt_form_count(reader, tokenizer, tmp_path):
    for calls, options in enumerate([{"seed": 0}, {"seed": 1}, {"seed": 1, "form": PlainForm()}], 1):
        start(reader, tokenizer, tmp_path, **options)
        assert reader.calls == calls
        start(reader, tokenizer, tmp_path, **options)
        assert reader.calls == calls


def test_the_code_that_reads_counts(reader, tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "reader.py").write_text("first")
    monkeypatch.setattr(reading, "__file__", str(code / "reading.py"))
    key = read_key(reader.files)
    assert read_key(reader.files[::-1]) == key
    (code / "reader.py").write_text("other")
    assert read_key(reader.files) != key


def test_a_broken_token_cache_is_made_again(reader, tokenizer, tmp_path):
    start(reader, tokenizer, tmp_path)
    next((tmp_path / "cache").glob("*/instances/*.arrow")).unlink()
    assert start(reader, tokenizer, tmp_path)["train"][ExampleIndex(0, 0, None)].text == "apple"
    assert reader.calls == 2


def test_an_error_is_never_remembered(reader, tokenizer, tmp_path):
    def failing(report):
        report.error("broken", "two.txt")
        report.raise_if_errors()

    for _ in range(2):
        with pytest.raises(DataError, match=r"broken: two\.txt"):
            load_or_read(failing, reader.files, {}, DataReport("data"), tokenizer, tmp_path / "cache")
    assert not list((tmp_path).glob("cache/*"))

"""Notes and manifests of token caches, damaged in every way: what is not as it was written is made again."""

import json

import pytest
from byte_tokenizer import build_byte_tokenizer
from fuzzing import AGAIN, MARKS, READ, damaged_file, fuzz, put

from tagi_lightning.data.cache_folder import is_whole
from tagi_lightning.data.prompts import PromptForm
from tagi_lightning.data.reading import load_or_read, read_note
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Demonstration, Instance, Task, TaskSplits
from tagi_lightning.data.token_cache import make_cache

pytestmark = MARKS

TASKS = (Task("one", "words", ("Say it",), (Demonstration("fig", "fig"),), (Instance("0", "apple", ("apple",)),)),)


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_tokenizer()


def test_manifests(record, tokenizer, tmp_path):
    folder = make_cache(TASKS, tokenizer, tmp_path, PromptForm())
    path = folder / "manifest.json"
    content = path.read_bytes()
    sizes = json.loads(content)

    def attempt(damaged):
        put(path, damaged)
        if not is_whole(folder):
            return AGAIN
        assert json.loads(damaged) == sizes
        return READ

    fuzz(record, "manifests of token caches", damaged_file(content), attempt, [b"{}"])
    put(path, b"{}")
    assert make_cache(TASKS, tokenizer, tmp_path, PromptForm()) == folder
    assert path.read_bytes() == content


def test_notes(record, tokenizer, tmp_path, capsys):
    def read(report):
        report.note("row left out", "row 3")
        return TaskSplits(TASKS, (), ())

    load_or_read(read, [], {}, DataReport("data"), tokenizer, tmp_path)
    [path] = tmp_path.glob("read-*.json")
    content = path.read_bytes()
    expected = read_note(path)

    def attempt(damaged):
        put(path, damaged)
        found = read_note(path)
        told = capsys.readouterr().out
        if found is None:
            assert str(path) in told
            assert len(told.splitlines()) == 1
            return AGAIN
        assert (found, told) == (expected, "")
        return READ

    fuzz(record, "notes of what was read", damaged_file(content), attempt, [b"{}"])
    put(path, b"{}")
    load_or_read(read, [], {}, report := DataReport("data"), tokenizer, tmp_path)
    assert path.read_bytes() == content
    assert report.notes == {"row left out": ["row 3"]}

from dataclasses import replace
from statistics import fmean

import pytest
from transformers import AutoTokenizer

from tagi_lightning.data import token_cache
from tagi_lightning.data.prompts import PromptAssembler, PromptForm
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.task import Demonstration, Instance, Task
from tagi_lightning.data.token_cache import cache_key, load_or_tokenize
from tagi_lightning.data.tokenized import ExampleIndex, check_lengths
from tagi_lightning.data.vocabulary import train_vocabulary

FORM = PromptForm()
TEXT = "Definition Positive Example Input Output: say the first word - apple pear plum. fig ?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([TEXT] * 3, folder, vocab_size=60)
    return AutoTokenizer.from_pretrained(folder)


def task(name, inputs, definitions=("Say the first word",), category="words"):
    instances = tuple(Instance(f"{name}/{n}", text, (text.split()[0], "fig fig")) for n, text in enumerate(inputs))
    return Task(name, category, definitions, (Demonstration("pear fig", "pear"),), instances)


TASKS = (task("one", ["apple pear", "plum"]), task("two", ["fig plum apple"], ("Say it", "Say the word?")))


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_cache_holds_every_piece_as_the_tokenizer_gives_it(tokenizer, tmp_path):
    tokens = load_or_tokenize(TASKS, tokenizer, tmp_path)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for number, each in enumerate(TASKS):
        found = tokens.tasks[number]
        assert (found.name, found.category, found.count) == (each.name, each.category, len(each.instances))
        assert list(found.definitions) == [ids(FORM.definition(text)) for text in each.definitions]
        assert list(found.demonstrations) == [ids(FORM.demonstration(1, each.demonstrations[0]))]
        for place, instance in enumerate(each.instances):
            example = tokens[ExampleIndex(number, place, None)]
            assert (example.id, example.text, example.references) == (
                instance.id,
                instance.input,
                instance.references,
            )
            assert example.text_ids == ids(FORM.input(instance.input))
            assert example.reference_ids == [ids(text) for text in instance.references]
    expected = [[len(ids(FORM.input(row.input))) for row in each.instances] for each in TASKS]
    assert [lengths.tolist() for lengths in tokens.text_lengths()] == expected
    means = [[round(fmean(len(ids(text)) for text in row.references)) for row in each.instances] for each in TASKS]
    assert [lengths.tolist() for lengths in tokens.reference_lengths()] == means


def test_second_start_reads_what_the_first_wrote(tokenizer, tmp_path):
    load_or_tokenize(TASKS, tokenizer, tmp_path)
    before = written(tmp_path)
    again = load_or_tokenize(TASKS, tokenizer, tmp_path)
    assert written(tmp_path) == before
    assert len(again) == 3


def test_key_changes_with_content_tokenizer_and_form(tokenizer, tmp_path, monkeypatch):
    other = tmp_path / "tokenizer"
    train_vocabulary([TEXT, "grape"], other, vocab_size=60)
    one, two = TASKS
    changed = replace(one.instances[0], references=("apple",))
    variants = [
        ((one, two), tokenizer, FORM),
        ((two, one), tokenizer, FORM),
        ((one,), tokenizer, FORM),
        ((replace(one, category="fruit"), two), tokenizer, FORM),
        ((replace(one, definitions=("Say",)), two), tokenizer, FORM),
        ((replace(one, demonstrations=()), two), tokenizer, FORM),
        ((replace(one, instances=(changed, one.instances[1])), two), tokenizer, FORM),
        ((one, two), AutoTokenizer.from_pretrained(other), FORM),
        ((one, two), tokenizer, replace(FORM, cue="\nAnswer: ")),
    ]
    keys = [cache_key(*variant) for variant in variants]
    monkeypatch.setattr(PromptForm, "VERSION", PromptForm.VERSION + 1)
    keys.append(cache_key(TASKS, tokenizer, FORM))
    monkeypatch.undo()
    monkeypatch.setattr(token_cache, "LAYOUT_VERSION", token_cache.LAYOUT_VERSION + 1)
    keys.append(cache_key(TASKS, tokenizer, FORM))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert cache_key(TASKS, tokenizer, FORM) == keys[0]


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "no manifest"])
def test_broken_folder_is_rebuilt(tokenizer, tmp_path, damage):
    load_or_tokenize(TASKS, tokenizer, tmp_path)
    folder = tmp_path / cache_key(TASKS, tokenizer, FORM)
    arrow = next((folder / "instances").glob("*.arrow"))
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:-8])
    elif damage == "missing":
        arrow.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").unlink()
    assert load_or_tokenize(TASKS, tokenizer, tmp_path)[ExampleIndex(1, 0, None)].text == "fig plum apple"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_folder_that_another_process_finished_meanwhile_stays(tokenizer, tmp_path, monkeypatch):
    tokenize, other = token_cache._tokenize_instances, {}

    def while_another_writes(*args):
        monkeypatch.undo()
        load_or_tokenize(TASKS, tokenizer, tmp_path)
        other.update(written(tmp_path / cache_key(TASKS, tokenizer, FORM)))
        return tokenize(*args)

    monkeypatch.setattr(token_cache, "_tokenize_instances", while_another_writes)
    assert len(load_or_tokenize(TASKS, tokenizer, tmp_path)) == 3
    assert other
    assert written(tmp_path) == other


def test_no_tasks_is_an_error(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no tasks"):
        load_or_tokenize((), tokenizer, tmp_path)


def test_definition_alone_too_long_is_an_error_naming_the_task(tokenizer, tmp_path):
    tokens = load_or_tokenize((TASKS[0], task("long", ["fig"], ("fig " * 80,))), tokenizer, tmp_path)
    build = PromptAssembler.from_tokenizer(tokenizer, 2, max_input_length=80)
    report = DataReport("folder")
    check_lengths(tokens, build, False, report)
    with pytest.raises(DataError, match=r"1 x definition alone longer than max_input_length=80: long"):
        report.raise_if_errors()


def test_what_the_limits_cut_is_counted(tokenizer, tmp_path):
    long = replace(task("cut", ["fig", "fig " * 300]), demonstrations=(Demonstration("pear " * 80, "pear"),))
    tokens = load_or_tokenize((long,), tokenizer, tmp_path)
    fits = len(tokens.tasks[0].definitions[0]) + len(tokens.tasks[0].demonstrations[0]) + 1
    report = DataReport("folder")
    check_lengths(tokens, PromptAssembler.from_tokenizer(tokenizer, 1, fits - 1, 2), True, report)
    assert not report.errors
    assert report.notes["input truncated to the limit"] == ["cut (1 of 2)"]
    assert report.notes["instruction without all its demonstrations: they do not fit"] == ["cut"]
    assert report.notes["prompt without all its demonstrations: they do not fit"] == ["cut (2 of 2)"]
    assert report.notes["target truncated to the limit"] == ["2 of 2 instances"]
    plain = DataReport("folder")
    check_lengths(tokens, PromptAssembler.from_tokenizer(tokenizer, 1, 10_000), True, plain)
    assert not plain.notes

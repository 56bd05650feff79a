from __future__ import annotations

import json

import pytest

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Demonstration, Instance
from tagi_lightning.data.task_file import read_task

DOCUMENT = {
    "Definition": ["Add the numbers."],
    "Categories": ["Arithmetic", "Mathematics"],
    "Positive Examples": [{"input": "1 2", "output": "3", "explanation": "1 + 2"}],
    "Instances": [{"id": "a", "input": "2 2", "output": ["4", "four"]}, {"id": "b", "input": "1 1", "output": ["2"]}],
}


@pytest.fixture
def report():
    return DataReport("the folder")


@pytest.fixture
def read(tmp_path, report):
    """Reads a task file made of the document above with some keys changed."""

    def read_changed(**changes):
        path = tmp_path / "add.json"
        path.write_text(json.dumps({**DOCUMENT, **changes}), encoding="utf-8")
        return read_task(path, report)

    return read_changed


def test_a_clean_file_becomes_a_task_without_remark(read, report):
    task = read()
    assert (task.name, task.category, task.definitions) == ("add", "Arithmetic", ("Add the numbers.",))
    assert task.demonstrations == (Demonstration("1 2", "3"),)
    assert task.instances == (Instance("a", "2 2", ("4", "four")), Instance("b", "1 1", ("2",)))
    assert not report.errors
    assert not report.notes


def test_definition_may_be_text_or_several_phrasings(read):
    assert read(Definition="Add.").definitions == ("Add.",)
    assert read(Definition=["Add.", "Sum up."]).definitions == ("Add.", "Sum up.")


def test_null_and_missing_ids_are_named_by_row(read, report):
    rows = [{"id": None, "input": "1", "output": ["1"]}, {"id": "x", "input": "2", "output": ["2"]}]
    task = read(Instances=[*rows, {"input": "1", "output": ["1"]}])
    assert [instance.id for instance in task.instances] == ["add/0", "x", "add/2"]
    assert report.notes == {
        "instance without id, named <task>/<row>": ["add.json instance 0", "add.json instance 2"],
    }


def test_empty_references_are_dropped_and_counted(read, report):
    rows = [{"id": "a", "input": "1", "output": ["", "one", " \n"]}, {"id": "b", "input": "2", "output": [""]}]
    task = read(Instances=rows)
    assert task.instances == (Instance("a", "1", ("one",)),)
    assert report.notes == {
        "empty reference dropped": ["add.json instance 0", "add.json instance 1"],
        "instance without reference dropped": ["add.json instance 1"],
    }


def test_identical_rows_are_taken_once(read, report):
    row = DOCUMENT["Instances"][0]
    assert len(read(Instances=[row, dict(row)]).instances) == 1
    assert report.notes == {"row given twice, taken once": ["add.json instance 1"]}


def test_missing_examples_and_category_are_noted(read, report):
    task = read(**{"Positive Examples": [], "Categories": []})
    assert task.demonstrations == ()
    assert task.category == "add"
    assert sorted(report.notes) == [
        "task without category, taken as a category of its own",
        "task without positive examples, its definition alone is the instruction",
    ]


BAD = {
    "task without definition (instruction)": [{"Definition": []}, {"Definition": None}],
    "definition that is neither text nor a list of texts": [{"Definition": 7}, {"Definition": ["Add.", 7]}],
    "empty definition": [{"Definition": ""}, {"Definition": "  "}, {"Definition": ["Add.", ""]}],
    "category that is not a name": [{"Categories": "Arithmetic"}, {"Categories": [None]}, {"Categories": None}],
    "positive examples that are not a list": [{"Positive Examples": None}, {"Positive Examples": {}}],
    "positive example without text as input and output": [
        {"Positive Examples": [{"input": 1, "output": "1"}]},
        {"Positive Examples": [{"input": "1", "output": ["1"]}]},
        {"Positive Examples": ["1"]},
    ],
    "task without instances": [{"Instances": []}, {"Instances": {}}, {"Instances": None}],
    "task without an instance that has a reference": [{"Instances": [{"input": "1", "output": []}]}],
    "instance without text as input and text or a list as output": [
        {"Instances": [{"input": "1"}]},
        {"Instances": [{"input": None, "output": ["1"]}]},
        {"Instances": [{"input": "1", "output": 1}]},
        {"Instances": ["1"]},
    ],
    "reference that is not text": [{"Instances": [{"input": "1", "output": ["1", 1]}]}],
    "id that is neither text nor null": [{"Instances": [{"id": 1, "input": "1", "output": ["1"]}]}],
    "id given to two different rows": [
        {"Instances": [{"id": "a", "input": "1", "output": ["1"]}, {"id": "a", "input": "2", "output": ["2"]}]}
    ],
}


@pytest.mark.parametrize(("kind", "changes"), [(kind, changes) for kind, cases in BAD.items() for changes in cases])
def test_bad_schema_is_an_error_that_names_the_file(read, report, kind, changes):
    assert read(**changes) is None
    assert list(report.errors) == [kind]
    assert report.errors[kind][0].startswith("add.json")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "not valid JSON"),
        (b'{"Definition": ', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"Definition": ["an unpaired \\ud83d surrogate"]}', "not valid JSON"),
        (b"null", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        ("{'Définition': 1}".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_files_that_hold_no_document_are_errors(tmp_path, report, content, kind):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    assert read_task(path, report) is None
    assert list(report.errors) == [kind]
    assert "broken.json" in report.errors[kind][0]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path, report):
    assert read_task(tmp_path, report) is None
    assert list(report.errors) == ["file that cannot be read"]


def test_paired_surrogates_are_text(tmp_path, report):
    path = tmp_path / "add.json"
    path.write_text(json.dumps({**DOCUMENT, "Definition": "Add \N{GRINNING FACE}."}), encoding="utf-8")
    assert "\\ud83d" in path.read_text(encoding="utf-8")
    assert read_task(path, report).definitions == ("Add \N{GRINNING FACE}.",)


def test_every_problem_of_a_file_is_found_at_once(read, report):
    read(Definition=None, Instances=[{"input": 1}, {"id": 2, "input": "1", "output": ["1"]}])
    assert len(report.errors) == 3

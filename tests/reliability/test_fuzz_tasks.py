"""Task files, rows of one's own tasks, instructions and labelled inputs, damaged in every way."""

import json

import pytest
from fuzzing import MARKS, REFUSED, damaged_bytes, damaged_lines, fuzz, fuzz_file, kind, lines, put, refused

from tagi_lightning.data.custom import read_custom
from tagi_lightning.data.instruction import read_instructions, read_task_instruction
from tagi_lightning.data.labelled import read_labelled
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.sni import read_sni

pytestmark = MARKS

TASK = {
    "Definition": ["Add the numbers."],
    "Categories": ["Arithmetic"],
    "Positive Examples": [{"input": "1 2", "output": "3", "explanation": "1 + 2"}],
    "Instances": [{"id": "a", "input": "2 2", "output": ["4", "four"]}, {"id": "b", "input": "1 1", "output": ["2"]}],
}
ROW = {"task": "add", "instruction": "Add.", "input": "1 2", "output": "3", "id": "a", "category": "sums"}
ROWS = [
    ROW | {"demonstrations": [{"input": "1 1", "output": "2"}]},
    {"task": "add", "input": "2 2", "output": ["4", "four"], "id": "b"},
    {"task": "copy", "instruction": ["Copy.", "Say it again."], "input": "owl", "output": "owl"},
]
DAMAGED_TASK = damaged_lines(TASK)


@pytest.fixture
def folder(tmp_path):
    """A Super-NaturalInstructions folder of a good task and one to be damaged, both for training."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    (tmp_path / "splits" / "default" / "train_tasks.txt").write_text("good\nbad\n")
    (tmp_path / "splits" / "default" / "test_tasks.txt").write_text("other\n")
    for name in ("good", "bad", "other"):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(TASK))
    return tmp_path


def test_task_files(record, folder):
    expected = read_sni(folder)

    def attempt(content):
        put(folder / "tasks" / "bad.json", content)
        report = DataReport(str(folder))
        found = refused(lambda: read_sni(folder, report=report), DataError, folder, "bad.json")
        if found is None:
            return REFUSED
        assert (found.train[0], found.test) == (expected.train[0], expected.test)
        return kind(report)

    fuzz(record, "task files of Super-NaturalInstructions", DAMAGED_TASK, attempt)


def test_split_lists(record, folder):
    expected = read_sni(folder)

    def attempt(content):
        put(folder / "splits" / "default" / "train_tasks.txt", content)
        report = DataReport(str(folder))
        found = refused(lambda: read_sni(folder, allow_missing=True, report=report), DataError, folder)
        if found is None:
            return REFUSED
        assert found.test == expected.test
        assert set(found.train) <= set(expected.train)
        return kind(report)

    inputs = damaged_bytes(b"good\nbad\n" + b"".join(b"absent%d\n" % number for number in range(5)))
    fuzz(record, "split lists", inputs, attempt, [b"good\n" + 300 * b"x", b"../tasks/good"])


def test_rows_of_own_tasks(record, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*ROWS))
    expected = {task.name: task for task in read_custom(path, test_share=0).train}

    def attempt(line):
        put(path, lines(*ROWS) + line + b"\n")
        report = DataReport(str(path))
        found = refused(lambda: read_custom(path, test_share=0, report=report), DataError, path)
        if found is None:
            return REFUSED
        tasks = {task.name: task for task in found.train}
        for name, task in expected.items():
            assert set(task.instances) <= set(tasks[name].instances)
            assert (task.definitions, task.demonstrations) == (tasks[name].definitions, tasks[name].demonstrations)
        return kind(report)

    fuzz(record, "rows of one's own tasks", damaged_lines(*ROWS, {**ROW, "task": "new", "id": "c"}), attempt)


def test_instructions(record, tmp_path):
    path, good = tmp_path / "instructions.jsonl", ROWS[::2]
    inputs = damaged_lines(*good)
    fuzz_file(
        record, "lines of instructions", path, inputs, lambda: read_instructions(path), DataError, good=lines(*good)
    )


def test_instruction_of_a_task_file(record, tmp_path):
    path = tmp_path / "task.json"
    fuzz_file(
        record, "task files read for their instruction", path, DAMAGED_TASK, lambda: read_task_instruction(path),
        DataError,
    )  # fmt: skip


def test_labelled_inputs(record, tmp_path):
    path, rows = tmp_path / "labelled.jsonl", [{"input": "2 3", "output": "5"}, {"input": "1", "output": ["1", "one"]}]
    inputs = damaged_lines(*rows)
    fuzz_file(record, "labelled inputs", path, inputs, lambda: read_labelled(path), DataError, good=lines(*rows))

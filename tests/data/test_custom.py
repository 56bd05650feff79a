from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagi_lightning.data.custom import read_custom
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.task import Demonstration, Instance


def row(task="add", **changes):
    return {"task": task, "instruction": f"Do {task}.", "input": "1 2", "output": "3", **changes}


@pytest.fixture
def write(tmp_path):
    """Writes rows to a JSONL file and returns its path."""

    def write_rows(*rows, name="tasks.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


def names(tasks):
    return [task.name for task in tasks]


def test_rows_are_gathered_to_tasks_in_first_seen_order(write):
    demonstrations = [{"input": "1 1", "output": "2"}]
    path = write(
        row("subtract", input="5 1", output=["4", "four"], category="Arithmetic", demonstrations=demonstrations),
        row("add", instruction=["Add.", "Sum up."], id="x"),
        row("subtract", input="9 1", output="8", category=None),
        {"task": "add", "input": "3 3", "output": "6"},
    )
    subtract, add = read_custom(path, test_share=0.0, val_split="none").train
    assert (subtract.category, subtract.definitions) == ("Arithmetic", ("Do subtract.",))
    assert subtract.demonstrations == (Demonstration("1 1", "2"),)
    assert sorted(subtract.instances, key=lambda instance: instance.id) == [
        Instance("subtract/0", "5 1", ("4", "four")),
        Instance("subtract/1", "9 1", ("8",)),
    ]
    assert (add.category, add.definitions) == ("add", ("Add.", "Sum up."))
    assert {instance.id for instance in add.instances} == {"x", "add/1"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(number=st.integers(2, 12), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_a_share_of_whole_tasks_is_held_out_for_testing(write, number, share, seed):
    path = write(*(row(f"task{index % number}", input=str(index)) for index in range(2 * number)))
    report = DataReport("rows")
    splits = read_custom(path, test_share=share, seed=seed, report=report)
    assert splits.train
    assert splits.test
    assert sorted(names(splits.train) + names(splits.test)) == sorted(f"task{index}" for index in range(number))
    assert report.notes['task held out for testing, as none carries a "split"'] == sorted(names(splits.test))
    assert read_custom(path, test_share=share, seed=seed) == splits


def test_no_or_all_tasks_can_be_test_tasks(write):
    path = write(row("add"), row("subtract"))
    assert names(read_custom(path, test_share=0).train) == ["add", "subtract"]
    splits = read_custom(path, test_share=1, val_split="tasks")
    assert (splits.train, splits.validation, names(splits.test)) == ((), (), ["add", "subtract"])
    with pytest.raises(ValueError, match=r"test_share must be at least 0 and at most 1, got 1.5"):
        read_custom(path, test_share=1.5)


def test_a_single_task_is_for_training(write):
    assert names(read_custom(write(row())).train) == ["add"]


def test_given_splits_are_kept(write):
    path = write(row("a", split="test"), row("b", split="train"), row("a", input="7"), row("c", split="train"))
    splits = read_custom(path)
    assert (names(splits.train), names(splits.test)) == (["b", "c"], ["a"])
    assert [instance.input for instance in splits.test[0].instances] == ["1 2", "7"]


def test_limits_categories_and_validation_apply(write):
    rows = [row(f"t{task}", input=str(number), category=f"c{task % 2}") for task in range(6) for number in range(9)]
    splits = read_custom(
        write(*rows),
        test_share=0.34,
        max_train_instances=4,
        max_test_instances=2,
        categories=["c0"],
        val_split="instances",
        val_share=0.25,
    )
    assert {task.category for task in splits.train} == {"c0"}
    assert {len(task.instances) for task in splits.train} == {3}
    assert {len(task.instances) for task in splits.validation} == {1}
    assert [[instance.input for instance in task.instances] for task in splits.test] == [["0", "1"]] * 2


BAD = {
    "split that is neither train nor test (all tasks have one or none has): tasks.jsonl:2 (None)": [
        row("a", split="test"),
        row("b"),
    ],
    "split that is neither train nor test (all tasks have one or none has): tasks.jsonl:1 ('dev')": [row(split="dev")],
    "split that differs from the task's first row: tasks.jsonl:2": [row(split="train"), row(split="test")],
    "instruction that differs from the task's first row: tasks.jsonl:3": [row(), row("b"), row(instruction="Sum up.")],
    "category that differs from the task's first row: tasks.jsonl:2": [row(), row(category="Arithmetic")],
    "row without a task's name: tasks.jsonl:2, tasks.jsonl:3": [row(), {"input": "1"}, row(task=3)],
    "task without definition (instruction): tasks.jsonl:1": [row(instruction=None)],
    "category that is not a name: tasks.jsonl:1": [row(category=["Arithmetic"])],
    "positive example without text as input and output: tasks.jsonl:1 example 0": [row(demonstrations=["1 1 -> 2"])],
    "instance without text as input and text or a list as output: tasks.jsonl:2": [row(), row(output=3)],
    "id given to two different rows: tasks.jsonl:2 (id x)": [row(id="x"), row(id="x", output="4")],
    "not a JSON object: tasks.jsonl:2": [row(), ["add", "1 2"]],
    "no rows: tasks.jsonl": [],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_errors_with_file_and_line(write, message):
    with pytest.raises(DataError) as error:
        read_custom(write(*BAD[message]))
    assert f"x {message}\n" in str(error.value)
    assert "Give a JSONL file with rows {task, instruction, input, output}" in str(error.value)


def test_whatever_is_wrong_comes_at_once(tmp_path):
    rows = [
        row("a", instruction=" "),
        row("b", split="dev"),
        row("c", output=[]),
        row("d", input=None),
        row(""),
        row("e", category=3),
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{"]), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_custom(path)
    for told in (
        "row without a task's name: tasks.jsonl:5\n",
        "not valid JSON: tasks.jsonl:7 (",
        "empty definition: tasks.jsonl:1\n",
        "split that is neither train nor test (all tasks have one or none has): ",
        "tasks.jsonl:2 ('dev')",
        "task without an instance that has a reference: tasks.jsonl:3\n",
        "instance without text as input and text or a list as output: tasks.jsonl:4\n",
        "category that is not a name: tasks.jsonl:6\n",
    ):
        assert told in str(error.value)


@pytest.mark.parametrize("name", ["tasks.jsonl", "add.json"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    document = {"Definition": "Add.", "Instances": [{"input": "1 2", "output": "3"}]}
    text = json.dumps(row() if name.endswith("l") else document)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_custom(tmp_path).train[0].instances[0].input == "1 2"


def test_blank_lines_are_skipped_and_broken_ones_told(tmp_path):
    path = tmp_path / "tasks.jsonl"
    line = json.dumps(row(input="a line\u2028separator"), ensure_ascii=False)
    path.write_text(f"\n{line}\n\n", encoding="utf-8")
    assert read_custom(path).train[0].instances[0].input == "a line\u2028separator"
    path.write_text(f"\n{line}\n{line[:20]}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 x not valid JSON: tasks\.jsonl:3 \("):
        read_custom(path)


def test_unknown_keys_are_noted(write):
    report = DataReport("rows")
    read_custom(write(row(catgory="Arithmetic")), report=report)
    assert report.notes["unknown key 'catgory', not used"] == ["tasks.jsonl:1"]


def test_a_folder_of_jsonl_files_is_read_in_order_of_names(write, tmp_path):
    write(row("b"), name="2.jsonl")
    write(row("a"), row("b", input="7"), name="1.jsonl")
    first, second = read_custom(tmp_path, test_share=0).train
    assert (first.name, second.name, len(second.instances)) == ("a", "b", 2)


def write_documents(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, split in splits.items():
        document = {
            "Definition": [f"Do {name}."],
            "Categories": ["Arithmetic"],
            "Instances": [{"input": "1", "output": ["1"]}],
        }
        (folder / f"{name}.json").write_text(json.dumps(document | ({"split": split} if split else {})))


@pytest.mark.parametrize("below", ["", "tasks"])
def test_a_folder_of_task_files_needs_no_split_lists(tmp_path, below):
    write_documents(tmp_path / below, add=None, subtract=None, multiply=None)
    splits = read_custom(tmp_path, test_share=0.3)
    assert sorted(names([*splits.train, *splits.test])) == ["add", "multiply", "subtract"]
    assert len(splits.test) == 1
    assert splits.train[0].category == "Arithmetic"


def test_task_files_may_carry_a_split(tmp_path):
    write_documents(tmp_path, add="train", subtract="test")
    assert names(read_custom(tmp_path).test) == ["subtract"]
    write_documents(tmp_path, multiply=None)
    with pytest.raises(DataError, match=r"neither train nor test .*multiply\.json \(None\)"):
        read_custom(tmp_path)


def test_folders_that_cannot_be_read_as_custom_are_told(write, tmp_path):
    with pytest.raises(DataError, match=r"no \.jsonl or \.json file"):
        read_custom(tmp_path / "absent")
    write(row())
    write_documents(tmp_path, add=None)
    with pytest.raises(DataError, match=r"folder with both \.jsonl and \.json files"):
        read_custom(tmp_path)
    (tmp_path / "splits").mkdir()
    with pytest.raises(DataError, match="split lists of its own, which TASKSET=sni reads"):
        read_custom(tmp_path)

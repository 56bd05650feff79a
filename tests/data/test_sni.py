from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.sni import read_sni

TRAIN = {"add": "Arithmetic", "subtract": "Arithmetic", "reverse": "Strings", "shout": "Strings", "echo": "Copies"}
TEST = {"multiply": "Products", "divide": "Quotients"}


def write_task(folder, name, category, size=160):
    document = {
        "Definition": [f"Do {name}."],
        "Categories": [category],
        "Positive Examples": [{"input": "x", "output": "y"}],
        "Instances": [{"id": f"{name}-{row}", "input": f"{row}", "output": [f"{name} {row}"]} for row in range(size)],
    }
    (folder / "tasks" / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def write_list(folder, which, names):
    (folder / "splits" / "default" / f"{which}_tasks.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    for name, category in {**TRAIN, **TEST}.items():
        write_task(tmp_path, name, category)
    write_list(tmp_path, "train", TRAIN)
    write_list(tmp_path, "test", TEST)
    (tmp_path / "tasks" / "unlisted.json").write_text("not even JSON", encoding="utf-8")
    return tmp_path


def names(tasks):
    return [task.name for task in tasks]


def ids(task):
    return [instance.id for instance in task.instances]


def test_tasks_come_in_the_order_of_the_lists(folder):
    splits = read_sni(folder)
    assert names(splits.train) == list(TRAIN)
    assert names(splits.test) == list(TEST)
    assert splits.validation == ()
    assert {task.category for task in splits.train} == {"Arithmetic", "Copies", "Strings"}


def test_test_instances_are_the_first_and_training_instances_a_permutation(folder):
    splits = read_sni(folder)
    for task in splits.test:
        assert ids(task) == [f"{task.name}-{row}" for row in range(100)]
    for task in splits.train:
        assert len(set(ids(task))) == 100
        assert ids(task) != sorted(ids(task), key=lambda name: int(name.split("-")[1]))
    assert read_sni(folder) == splits
    assert ids(read_sni(folder, seed=1).train[0]) != ids(splits.train[0])
    assert read_sni(folder, seed=1).test == splits.test


def test_fewer_instances_are_the_first_of_the_same_permutation(folder):
    few = read_sni(folder, max_train_instances=10, max_test_instances=3)
    for task, whole in zip(few.train, read_sni(folder, max_train_instances=None).train, strict=True):
        assert ids(task) == ids(whole)[:10]
        assert len(whole.instances) == 160
    assert [len(task.instances) for task in few.test] == [3, 3]


@pytest.mark.parametrize("val_split", ["none", "tasks", "instances"])
def test_held_out_instances_are_ranks_101_to_150_of_the_training_tasks(folder, val_split):
    options = {"val_split": val_split, "val_share": 0.2}
    held_out = read_sni(folder, held_out_instances=50, **options)
    training = read_sni(folder, **options)
    whole = {task.name: ids(task) for task in read_sni(folder, max_train_instances=None).train}
    assert names(held_out.train) == names(training.train)
    for task in held_out.train:
        assert ids(task) == whole[task.name][100:150]


def test_a_task_without_held_out_instances_is_left_out_and_noted(folder):
    write_task(folder, "add", "Arithmetic", size=100)
    report = DataReport("folder")
    assert names(read_sni(folder, held_out_instances=50, report=report).train) == list(TRAIN)[1:]
    assert report.notes == {"task without held-out instances, left out": ["add"]}
    with pytest.raises(ValueError, match="held_out_instances needs max_train_instances"):
        read_sni(folder, held_out_instances=50, max_train_instances=None)


@pytest.mark.parametrize("val_split", ["categories", "tasks", "instances"])
def test_validation_is_held_out_of_the_training_tasks_alone(folder, val_split):
    splits = read_sni(folder, val_split=val_split, val_share=0.2)
    train = {name for task in splits.train for name in ids(task)}
    validation = {name for task in splits.validation for name in ids(task)}
    assert validation
    assert not train & validation
    assert train | validation == {name for task in read_sni(folder).train for name in ids(task)}
    assert splits.test == read_sni(folder).test


def test_categories_are_chosen_before_validation_is_held_out(folder):
    splits = read_sni(folder, categories=["Strings"], val_split="tasks")
    assert sorted(names([*splits.train, *splits.validation])) == ["reverse", "shout"]
    assert names(splits.test) == list(TEST)


def test_an_unknown_category_is_told_with_those_allowed(folder):
    with pytest.raises(DataError, match=r"unknown category \(allowed: Arithmetic, Copies, Strings\): 'Products'"):
        read_sni(folder, categories=["Products"])
    with pytest.raises(DataError, match="no subset of 5 categories, allowed: 6, 15, 30, 60"):
        read_sni(folder, categories=5)
    with pytest.raises(DataError, match="no training task in the categories: 60"):
        read_sni(folder, categories=60)


def test_absent_tasks_stop_unless_allowed(folder):
    (folder / "tasks" / "echo.json").unlink()
    (folder / "tasks" / "divide.json").unlink()
    with pytest.raises(DataError) as error:
        read_sni(folder)
    assert "1 x train task without a file in tasks/ (5 are listed): echo" in str(error.value)
    assert "1 x test task without a file in tasks/ (2 are listed): divide" in str(error.value)
    assert "make data TASKSET=sni" in str(error.value)
    assert "--data.allow_missing=true" in str(error.value)

    report = DataReport("folder")
    splits = read_sni(folder, allow_missing=True, report=report)
    assert (len(splits.train), len(splits.test)) == (4, 1)
    assert "1 x train task without a file in tasks/ (5 are listed): echo" in report.summary()


def test_a_folder_where_every_task_is_absent_is_an_error_even_if_allowed(folder):
    for path in (folder / "tasks").iterdir():
        path.unlink()
    for allowed in (False, True):
        with pytest.raises(DataError, match="no usable task") as error:
            read_sni(folder, allow_missing=allowed)
        assert "allow_missing" not in str(error.value)


@pytest.mark.parametrize("missing", [".", "tasks", "splits", "splits/default/test_tasks.txt"])
def test_a_missing_folder_or_list_names_its_path_and_the_command(folder, missing):
    (folder / missing).rename(folder.parent / f"{folder.name}-moved")
    with pytest.raises(DataError) as error:
        read_sni(folder)
    assert str(folder / missing) in str(error.value)
    assert "make data TASKSET=sni" in str(error.value)
    assert "allow_missing" not in str(error.value)


def test_all_problems_are_told_in_one_error(folder):
    write_list(folder, "train", [*TRAIN, "add", "multiply", "absent"])
    write_list(folder, "test", ["", *TEST])
    (folder / "tasks" / "echo.json").write_text("{", encoding="utf-8")
    (folder / "tasks" / "divide.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_sni(folder)
    for line in (
        "1 x task named more than once in a split list: add (train_tasks.txt)",
        "1 x test task in the train list: multiply",
        "1 x train task without a file in tasks/ (7 are listed): absent",
        "1 x not valid JSON: echo.json",
        "1 x task without definition (instruction): divide.json",
        "1 x task without instances: divide.json",
    ):
        assert line in str(error.value)


def test_an_empty_list_is_an_error(folder):
    write_list(folder, "test", [])
    with pytest.raises(DataError, match=r"empty split list: test_tasks\.txt"):
        read_sni(folder)


@pytest.mark.realdata
def test_the_real_folder_loads_and_says_what_is_left_out():
    if "TAGI_DATA" not in os.environ:
        pytest.skip("TAGI_DATA does not name a folder with sni/")
    folder = Path(os.environ["TAGI_DATA"]) / "sni"
    report = DataReport(str(folder))
    splits = read_sni(folder, allow_missing=True, val_split="tasks", report=report)
    print(report.summary())
    assert len(splits.train) + len(splits.validation) == 478
    assert (len(splits.validation), len(splits.test)) == (24, 90)
    assert len({task.category for task in splits.test}) == 12
    assert max(len(task.instances) for task in splits.test) == 100
    counts = {kind: len(places) for kind, places in report.notes.items()}
    assert counts["train task without a file in tasks/ (756 are listed)"] == 756 - 478
    assert counts["test task without a file in tasks/ (119 are listed)"] == 119 - 90
    with pytest.raises(DataError, match=r"278 x train task without a file(.|\n)*29 x test task without a file"):
        read_sni(folder)

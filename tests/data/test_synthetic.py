"""The synthetic task set is deterministic, in the official schema, and cannot be solved without instructions."""

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.synthetic import RECORD, SyntheticConfig, synthetic_tasks, write_synthetic
from tagi_lightning.data.synthetic_operations import MAX_ANSWER_WORDS, OPERATIONS, SUBJECTS
from tagi_lightning.data.task import TaskSplits

SMALL = SyntheticConfig(train_instances=12, test_instances=8, documents_per_task=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def splits(folder: Path) -> TaskSplits:
    return read_sni(folder, max_train_instances=None, max_test_instances=None)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_configuration_gives_the_same_bytes_and_another_seed_does_not(folder: Path, tmp_path: Path):
    write_synthetic(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(folder)
    write_synthetic(tmp_path / "other", SyntheticConfig(seed=1, train_instances=12, test_instances=8))
    assert digests(tmp_path / "other") != digests(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_a_written_folder_is_left_alone_and_another_configuration_refused(tmp_path: Path):
    folder = tmp_path / "data"
    write_synthetic(folder, SMALL)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_synthetic(folder, SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    with pytest.raises(FileExistsError, match="not empty"):
        write_synthetic(folder, SyntheticConfig(seed=1))
    (folder / RECORD).unlink()
    with pytest.raises(FileExistsError, match="not empty"):
        write_synthetic(folder, SMALL)


@pytest.mark.parametrize("wrong", [{"held_out": 0.0}, {"held_out": 1.0}, {"demonstrations": 1}, {"test_instances": 0}])
def test_wrong_configurations_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)


@pytest.mark.parametrize("seed", range(5))
def test_a_quarter_is_held_out_and_every_part_is_trained_with_several_partners(seed: int):
    tasks = synthetic_tasks(seed, 0.25)
    assert len({task.name for task in tasks}) == len(OPERATIONS) * len(SUBJECTS)
    assert sum(task.held_out for task in tasks) == len(tasks) / 4
    trained = [task for task in tasks if not task.held_out]
    operations = Counter(task.operation.name for task in trained)
    subjects = Counter(task.subject for task in trained)
    assert set(operations) == {operation.name for operation in OPERATIONS}
    assert set(subjects) == set(SUBJECTS)
    assert min(*operations.values(), *subjects.values()) >= 4


def test_words_belong_to_one_subject_and_phrasings_are_short():
    words = [word for members in SUBJECTS.values() for word in members]
    assert len(words) == len(set(words))
    for operation in OPERATIONS:
        for phrasing in operation.phrasings:
            assert 6 <= len(phrasing.split()) <= 12
            assert not set(phrasing.split()) & set(words)


def test_tasks_follow_the_official_schema(folder: Path, splits: TaskSplits):
    assert (len(splits.train), len(splits.test)) == (
        len(OPERATIONS) * len(SUBJECTS) * 3 / 4,
        len(OPERATIONS) * len(SUBJECTS) / 4,
    )
    names = (
        "Contributors|Source|URL|Categories|Reasoning|Definition|Input_language|Output_language|Instruction_language|"
        "Domains|Positive Examples|Negative Examples|Instances|Instance License"
    )
    for path in (folder / "tasks").iterdir():
        task = json.loads(path.read_text())
        assert "|".join(task) == names
        assert all(set(each) == {"input", "output", "explanation"} for each in task["Positive Examples"])
        assert all(set(each) == {"id", "input", "output"} for each in task["Instances"])


def test_every_answer_is_right_short_and_needs_its_subject(splits: TaskSplits):
    tasks = {task.name: task for task in synthetic_tasks(SMALL.seed, SMALL.held_out)}
    for task in [*splits.train, *splits.test]:
        made = tasks[task.name]
        assert task.category == made.operation.name
        assert len(task.definitions) > 1
        assert len(task.demonstrations) == SMALL.demonstrations
        inputs = [each.input for each in (*task.instances, *task.demonstrations)]
        assert len(set(inputs)) == len(inputs)
        for instance in task.instances:
            words = instance.input.split()
            owners = {subject for subject, members in SUBJECTS.items() for word in words if word in members}
            answer = instance.references[0].split()
            assert made.subject in owners
            assert len(owners) >= 2
            assert 3 <= len(words) == len(set(words)) <= 5
            assert 1 <= len(answer) <= MAX_ANSWER_WORDS
            assert answer == made.operation.apply(words, made.subject)


def test_another_instruction_gives_another_answer(splits: TaskSplits):
    rng = random.Random(0)
    tasks = {task.name: task for task in synthetic_tasks(SMALL.seed, SMALL.held_out)}
    compared = agreed = 0
    for task in splits.test:
        for instance in task.instances:
            for other in rng.sample(list(tasks.values()), 20):
                answer = other.operation.apply(instance.input.split(), other.subject)
                if other.name != task.name and answer:
                    compared += 1
                    agreed += " ".join(answer) == instance.references[0]
    assert compared > 100
    assert agreed / compared < 0.25


def test_no_answer_is_frequent(splits: TaskSplits):
    for tasks in (splits.train, splits.test):
        answers = Counter(instance.references[0] for task in tasks for instance in task.instances)
        assert answers.most_common(1)[0][1] / answers.total() < 0.05


def test_the_corpus_shows_training_tasks_only(folder: Path):
    tasks = synthetic_tasks(SMALL.seed, SMALL.held_out)
    documents = (folder / "corpus" / "train.txt").read_text().strip().split("\n\n")
    shown = {document.split(".")[0].removeprefix("Definition: ") for document in documents}
    definitions = {text: task.held_out for task in tasks for text in task.definitions(SMALL.seed)}
    assert len(documents) == SMALL.documents_per_task * sum(not task.held_out for task in tasks)
    assert not any(definitions[text] for text in shown)


def test_the_default_set_is_written_fast(tmp_path: Path):
    start = time.perf_counter()
    write_synthetic(tmp_path / "data", SyntheticConfig())
    assert time.perf_counter() - start < 10

import json

import pytest

from tagi_lightning.data.p3 import read_p3
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.synthetic_operations import SUBJECTS
from tagi_lightning.data.synthetic_p3 import SyntheticP3Config, synthetic_p3_sets, write_synthetic_p3
from tagi_lightning.data.tokenizer import load_tokenizer

SMALL = SyntheticP3Config(train_rows=12, shot_rows=6, test_rows=5, documents_per_template=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "p3"
    write_synthetic_p3(path, SMALL)
    return path


@pytest.fixture(scope="module")
def splits(folder):
    report = DataReport("made")
    found = read_p3(folder, folder / "templates", max_train_instances=8, shots=2, report=report)
    assert not report.notes.keys() - {"training task with fewer than 2 demonstrations"}
    return found


def test_three_data_sets_train_and_two_test_with_a_few_templates_each(splits):
    assert [sorted({task.dataset for task in tasks}) for tasks in (splits.train, splits.test)] == [
        ["around", "living", "made"],
        ["the_first", "the_last"],
    ]
    assert (len(splits.train), len(splits.test)) == (54, 18)
    assert {len(task.instances) for task in splits.train} == {8}
    assert {len(task.instances) for task in splits.test} == {5}


def test_no_combination_of_a_test_template_is_trained_on_and_both_its_parts_are():
    train, test = synthetic_p3_sets()
    seen, unseen = ({pair for each in sets for pair in each.asked} for sets in (train, test))
    assert not seen & unseen
    for place in (0, 1):
        assert {pair[place] for pair in unseen} <= {pair[place] for pair in seen}
    assert {subject for each in train for subject in each.subjects} == SUBJECTS.keys()


def test_the_answer_is_the_first_or_last_word_of_the_subject_among_all_the_words(splits):
    for task in (*splits.train, *splits.test):
        end, subject, _ = task.template.split("_")
        for row in task.instances:
            words = row.input.split()
            members = [word for word in words if word in SUBJECTS[subject]]
            assert row.references == (members[0 if end == "first" else -1],)
            assert row.choices == tuple(words)
            assert row.choices[row.gold] == row.references[0]
            assert (len(words), len(members)) == (8, 2)
            assert row.prompt.startswith(row.input)
        assert "[words]" in task.definitions[0]
        assert subject in task.definitions[0]


def test_demonstrations_are_never_evaluated_or_trained_on(splits):
    for task in (*splits.train, *splits.test):
        assert task.demonstrations
        assert not {each.input for each in task.demonstrations} & {row.prompt for row in task.instances}


def test_every_word_is_a_token(folder, splits):
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for task in (*splits.train, *splits.test):
        assert tokenizer.unk_token_id not in tokenizer(f"{task.definitions[0]} {task.instances[0].prompt}")["input_ids"]


def test_files_depend_on_the_configuration_alone_and_others_are_left_alone(folder, tmp_path):
    write_synthetic_p3(tmp_path / "again", SMALL)
    for path in folder.rglob("*.*"):
        if path.is_file() and "tokenizer" not in path.parts and ".cache" not in path.parts:
            assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    write_synthetic_p3(folder, SMALL)
    with pytest.raises(FileExistsError, match="not empty"):
        write_synthetic_p3(folder, SyntheticP3Config(seed=1))
    rows = [json.loads(line) for line in (folder / "living/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["words"] for row in rows}) == 12
    with pytest.raises(ValueError, match="at least 1"):
        SyntheticP3Config(test_rows=0)

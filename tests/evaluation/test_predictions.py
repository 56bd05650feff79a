import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagi_lightning.data.report import DataError
from tagi_lightning.evaluation.predictions import Prediction, read_predictions, write_metrics, write_predictions

PLAIN = Prediction(
    id="7",
    task="task1",
    category="Title Generation",
    dataset="",
    template="",
    instruction_sha256="ab" * 32,
    prediction="Ein Titel: “süß”\u2028\n",
    references=("one", "two"),
)
RANKED = replace(
    PLAIN,
    id="8",
    dataset="rte",
    template="GPT-3 style",
    choices=("True", "False"),
    logprob_sum=(-1.25, -0.5),
    logprob_mean=(-0.625, -0.25),
    gold=1,
)


def edited(row, drop=(), **values):
    """The row's JSON line with keys dropped and values replaced."""
    fields = {key: value for key, value in row.to_json().items() if key not in drop} | values
    return json.dumps(fields) + "\n"


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    write_predictions(path, [PLAIN, RANKED])
    assert read_predictions(path) == [PLAIN, RANKED]
    assert "süß" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_keys_are_the_flat_schema(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [PLAIN, RANKED])
    plain, ranked = (json.loads(line) for line in path.read_bytes().splitlines())
    schema = ["id", "task", "category", "dataset", "template", "instruction_sha256", "prediction", "references"]
    assert list(plain) == schema
    assert list(ranked) == [*schema, "choices", "logprob_sum", "logprob_mean", "gold"]


@given(
    prediction=st.text(),
    references=st.lists(st.text(), min_size=1, max_size=3),
    scores=st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_any_text_and_numbers_survive(tmp_path_factory, prediction, references, scores):
    row = replace(
        PLAIN,
        prediction=prediction,
        references=tuple(references),
        choices=tuple(str(index) for index in range(len(scores))),
        logprob_sum=tuple(total for total, _ in scores),
        logprob_mean=tuple(mean for _, mean in scores),
        gold=0 if scores else None,
    )
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_predictions(path, [row], overwrite=True)
    assert read_predictions(path) == [row]


def test_lone_surrogates_survive(tmp_path):
    row = replace(PLAIN, prediction="half \ud83d of a pair")
    write_predictions(tmp_path / "p.jsonl", [row])
    assert read_predictions(tmp_path / "p.jsonl") == [row]
    (tmp_path / "p.jsonl").read_bytes().decode("utf-8")


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [PLAIN])
    with pytest.raises(FileExistsError, match=r"p\.jsonl exists"):
        write_predictions(path, [RANKED])
    assert read_predictions(path) == [PLAIN]
    write_predictions(path, [RANKED], overwrite=True)
    assert read_predictions(path) == [RANKED]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [PLAIN])

    def rows():
        yield RANKED
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, rows(), overwrite=True)
    assert read_predictions(path) == [PLAIN]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json\n", "1 x line is not JSON: p.jsonl:2"),
        ("\n", "1 x line is not JSON: p.jsonl:2"),
        ("[1]\n", "1 x line is not a JSON object: p.jsonl:2"),
        (edited(PLAIN, drop=["task"]), "1 x key 'task' missing: p.jsonl:2"),
        (edited(PLAIN, Task="x"), "1 x key 'Task' unknown: p.jsonl:2"),
        (edited(PLAIN, id=7), "1 x id must be text: p.jsonl:2"),
        (edited(PLAIN, prediction=None), "1 x prediction must be text: p.jsonl:2"),
        (edited(PLAIN, references="one"), "1 x references must be a list of texts: p.jsonl:2"),
        (edited(PLAIN, references=[1]), "1 x references must be a list of texts: p.jsonl:2"),
        (edited(PLAIN, references=[]), "1 x references must name at least one acceptable output: p.jsonl:2"),
        (edited(RANKED, drop=["gold"]), "1 x key 'gold' missing: p.jsonl:2"),
        (edited(RANKED, gold=True), "1 x gold must be a whole number: p.jsonl:2"),
        (edited(RANKED, gold=2), "1 x gold must be the index of one of the choices: p.jsonl:2"),
        (edited(RANKED, gold=-1), "1 x gold must be the index of one of the choices: p.jsonl:2"),
        (edited(RANKED, choices=[], logprob_sum=[], logprob_mean=[]), "1 x gold needs choices: p.jsonl:2"),
        (edited(RANKED, logprob_sum=[0.0]), "choices, logprob_sum and logprob_mean must be equally long: p.jsonl:2"),
        (edited(RANKED, logprob_mean=["0", "1"]), "1 x logprob_mean must be a list of numbers: p.jsonl:2"),
        (edited(RANKED, logprob_sum=[float("nan"), 0.0]), "must be finite numbers: p.jsonl:2"),
        (edited(PLAIN, id="first"), "1 x row repeated: p.jsonl:2 (task 'task1', id 'first', as in line 1)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    path = tmp_path / "p.jsonl"
    path.write_text(edited(PLAIN, id="first") + line, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_predictions(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_all_problems_are_told_together(tmp_path):
    path = tmp_path / "p.jsonl"
    bad = [edited(PLAIN, drop=["id"]), edited(PLAIN, drop=["id", "task"], extra=1), edited(PLAIN)]
    path.write_bytes("".join(bad).encode() + b'{"id": "\xff"}\n')
    with pytest.raises(DataError) as error:
        read_predictions(path)
    for told in (
        "2 x key 'id' missing: p.jsonl:1, p.jsonl:2",
        "1 x key 'task' missing: p.jsonl:2",
        "1 x key 'extra' unknown: p.jsonl:2",
        "1 x line is not UTF-8: p.jsonl:4",
    ):
        assert told in str(error.value)


def test_one_id_may_stand_in_two_tasks(tmp_path):
    rows = [PLAIN, replace(PLAIN, task="task2")]
    write_predictions(tmp_path / "p.jsonl", rows)
    assert read_predictions(tmp_path / "p.jsonl") == rows


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        read_predictions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        read_predictions(tmp_path / "empty.jsonl")


def test_metrics_are_json_and_never_nan(tmp_path):
    path = tmp_path / "metrics.json"
    metrics = {"overall": {"n": 1, "rougeL": 100.0}, "commit": "abc"}
    write_metrics(path, metrics)
    assert json.loads(path.read_text(encoding="utf-8")) == metrics
    with pytest.raises(FileExistsError):
        write_metrics(path, metrics)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_metrics(path, {"rougeL": float("nan")}, overwrite=True)
    assert json.loads(path.read_text(encoding="utf-8")) == metrics

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tagi_lightning.data.p3.limits import RowProblem
from tagi_lightning.data.p3.rendered import RenderedRows
from tagi_lightning.data.p3.rows import open_rows
from tagi_lightning.data.report import DataReport

ROWS = [
    {"text": "Größe", "label": 1, "answers": {"text": ["a", "b"]}},
    {"text": "two", "label": 0, "answers": {"text": []}},
]


def write_lines(folder, rows, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(folder):
    write_lines(folder, ROWS)


def parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")


def shards(folder):
    for number, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"train-0000{number}-of-00002.parquet")


def arrow(folder):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(folder))


@pytest.mark.parametrize("write", [lines, parquet, shards, arrow])
def test_rows_are_the_same_in_every_form(tmp_path, write):
    write(tmp_path)
    report = DataReport("rows")
    rows = open_rows(tmp_path, "train", report)
    assert [rows[0], rows[1]] == ROWS
    assert (len(rows), rows.columns, report.errors) == (2, {"text", "label", "answers"}, {})
    assert open_rows(tmp_path, "validation", report) is None


def test_bad_lines_keep_their_place_and_become_none(tmp_path):
    good = json.dumps(ROWS[0]).encode()
    bad = [b'{"text": "\xff"}', b"{broken", b"[1]", b'{"text": "\\ud800"}', b"", b"[" * 100_000]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([*bad, good]) + b"\n")
    rows = open_rows(tmp_path, "train", DataReport("rows"))
    assert list(rows) == [None] * 6 + [ROWS[0]]


def test_a_file_that_is_no_table_is_an_error(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no table")
    report = DataReport("rows")
    assert open_rows(tmp_path, "train", report) is None
    assert list(report.errors) == ["rows that cannot be read"]


def rendered(tmp_path, rows):
    write_lines(tmp_path, rows)
    return RenderedRows(open_rows(tmp_path, "train", DataReport("rows")))


def row(prompt, target, **more):
    return {"inputs_pretokenized": prompt, "targets_pretokenized": target, **more}


def test_rendered_rows_carry_choices_and_gold(tmp_path):
    found = rendered(
        tmp_path,
        [
            row("Is it so?\n", "\nYes", answer_choices=["No", "Yes"]),
            row("Sum up: x", "y"),
            row("Is it so?", "Maybe", answer_choices=["No", "Yes"]),
            row("Is it so?", "Yes", answer_choices=["Yes", "Yes"]),
            row("Is it so?", " ", answer_choices=["No", "Yes"]),
        ],
    )
    first, second, third = (found.fill(place) for place in range(3))
    assert (first.prompt, first.targets, first.choices, first.gold) == ("Is it so?", ("Yes",), ("No", "Yes"), 1)
    assert (second.targets, second.choices, second.gold) == (("y",), (), None)
    assert (third.choices, third.gold) == (("No", "Yes"), None)
    for place, message in ((3, "duplicate"), (4, "without text as targets")):
        with pytest.raises(RowProblem, match=message):
            found.fill(place)


@pytest.mark.parametrize("numbered", [True, False])
def test_rows_of_one_choice_each_become_one_example(tmp_path, numbered):
    rows = []
    for example, gold in enumerate([1, 0, None]):
        for place, text in enumerate(["No", "Yes"]):
            index = {"idx": [example, place]} if numbered else {}
            rows.append(row(f"Is it {example}?", text, is_correct=place == gold, **index))
    found = rendered(tmp_path, rows)
    assert len(found) == 3
    assert [(found.fill(n).choices, found.fill(n).gold, found.fill(n).targets) for n in (0, 1)] == [
        (("No", "Yes"), 1, ("Yes",)),
        (("No", "Yes"), 0, ("No",)),
    ]
    with pytest.raises(RowProblem, match="0 choices marked as correct"):
        found.fill(2)

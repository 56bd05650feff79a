import json

import pytest
from commands import tagi

FILES = ("lora-points", "lora-cosines", "lora-distributions", "lora-teachers", "lora-norms", "fusion-gates")


def inspect(capsys, *words):
    code = tagi(["inspect", *words])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


def test_a_run_folder_is_drawn_with_its_teachers_answers_and_scores(chain, task_set, tmp_path, capsys):
    options = ["--model", chain / "model", "--tasks", task_set, "--output", tmp_path, "--count", 9, "--instances", 1]
    code, [page], said = inspect(capsys, *options, "--max_new_tokens", 3)
    assert code == 0
    assert "9 of 120 tasks" in said
    found = {path.stem for path in tmp_path.glob("*.png")}
    assert {*FILES, "fusion-attention-1", "scores-train", "scores-test"} <= found
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page == str(tmp_path / "index.html")
    assert text.count("data:image/png;base64,") == len(found)
    assert "<h2 id=answers>" in text
    assert "Left out" not in text


def test_splits_teachers_and_answers_can_be_left_out(chain, task_set, tmp_path, capsys):
    options = ["--splits", "[test]", "--count", 2, "--instances", 0, "--teachers", "none"]
    code, _, said = inspect(capsys, "--model", chain / "model", "--tasks", task_set, "--output", tmp_path, *options)
    assert code == 0
    assert "2 of 30 tasks" in said
    assert not list(tmp_path.glob("scores*"))
    assert not list(tmp_path.glob("*teachers*"))
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "there are no teachers" in text
    assert "--instances 0" in text


def test_tasks_of_ones_own_are_drawn(chain, tmp_path, capsys):
    rows = [{"task": name, "instruction": f"Say {name}.", "input": "a", "output": "b"} for name in ("one", "two")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--model", chain / "model", "--tasks", tmp_path / "own.jsonl", "--output", tmp_path / "o"]
    code, _, said = inspect(capsys, *options, "--max_new_tokens", 2)
    assert code == 0
    assert "2 of 2 tasks" in said
    for name in ("one", "two"):
        assert f"<td>{name}</td>" in (tmp_path / "o" / "index.html").read_text(encoding="utf-8")


WRONG = [
    (["--count", "0"], "--count must be at least 1, or null"),
    (["--instances", "-1"], "--instances must be at least 0"),
    (["--tasks", "absent"], "absent cannot be used"),
    (["--model", "absent"], "no tagi model in absent"),
    (["--teachers", "absent"], "no teachers model in absent"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_wrong_is_told_and_nothing_is_written(chain, task_set, tmp_path, capsys, options, message):
    given = ["--model", chain / "model", "--tasks", task_set, "--output", tmp_path / "o", "--count", "2"]
    code, printed, said = inspect(capsys, *given, *options)
    assert (code, printed) == (1, [])
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()

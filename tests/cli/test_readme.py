"""Every command of the README is one that exists, and what needs no data or internet is run."""

import shlex

import pytest
from commands import ROOT, chain, tagi, task_set
from documented import bash_lines, blocks, dry_run, inline_makes, without_comment

__all__ = ["chain", "task_set"]

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [without_comment(line) for line in bash_lines(README)]
MAKES = sorted({line for line in [*LINES, *inline_makes(README)] if line.startswith("make ")})
OTHERS = [line for line in LINES if not line.startswith("make ")]


def test_the_readme_shows_commands_of_each_kind():
    assert len(MAKES) > 8
    assert OTHERS
    assert blocks(README, "python")
    assert blocks(README, "json")


@pytest.mark.parametrize("line", MAKES)
def test_make_knows_the_command_and_its_configurations(line):
    dry_run(line)


def test_every_other_command_is_tagi_and_runs(chain, tmp_path, monkeypatch, capsys):
    predictions = tmp_path / "predictions.jsonl"
    row = '{"id":"1","task":"t","category":"c","dataset":"","template":"","instruction_sha256":"",'
    predictions.write_text(row + '"prediction":"a b","references":["a b"]}\n', encoding="utf-8")
    (tmp_path / "inputs.jsonl").write_text('{"input": "owl cat crow"}\n', encoding="utf-8")
    for line in OTHERS:
        words = shlex.split(line)
        assert words[0] == ".venv/bin/tagi"
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                tagi(words[1:])
            continue
        if "<" in words:
            words = words[: words.index("<")]
            monkeypatch.setattr("sys.stdin", (tmp_path / "inputs.jsonl").open())
        if words[1] == "score":
            words[words.index("--predictions") + 1] = str(predictions)
        places = {"runs/demo/model": chain / "model", "runs/adapters": tmp_path / "adapters"}
        assert tagi([places.get(word, word) for word in words[1:]]) == 0, line
    told = capsys.readouterr().out
    assert '"exact_match": 100.0' in told
    assert told.count('{"id": 1, "output": "') == 2


def test_the_python_example_answers_and_saves(chain, tmp_path, capsys):
    [example] = blocks(README, "python")
    code = example.replace("runs/adapters", str(tmp_path))
    exec(code.replace("runs/demo/model", str(chain / "model")), {})
    answers = capsys.readouterr().out.strip()
    assert answers.startswith("[")
    assert answers.count("'") + answers.count('"') == 4
    assert (tmp_path / "last-bird" / "adapter_model.safetensors").is_file()

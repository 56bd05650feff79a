"""Every command of the README is one that exists, and what needs no data or internet is run."""

import re
import shlex

import pytest
from commands import ROOT, chain, make, tagi, task_set

__all__ = ["chain", "task_set"]

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    language: re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) for language in ("bash", "python", "json")
}
LINES = [line.split(" # ")[0].strip() for block in BLOCKS["bash"] for line in block.splitlines() if line.strip()]
INLINE = re.findall(r"`(make [a-z][^`]*)`", README)
MAKES = sorted({line for line in [*LINES, *INLINE] if line.startswith("make ")})
OTHERS = [line for line in LINES if not line.startswith("make ")]


def test_the_readme_shows_commands_of_each_kind():
    assert len(MAKES) > 8
    assert OTHERS
    assert BLOCKS["python"]
    assert BLOCKS["json"]


@pytest.mark.parametrize("line", MAKES)
def test_make_knows_the_command(line):
    make("--dry-run", *shlex.split(line)[1:])


@pytest.mark.parametrize("line", MAKES)
def test_the_configurations_of_a_command_exist(line):
    text = make("--dry-run", *shlex.split(line)[1:]).stdout
    for path in re.findall(r"--config (\S+)", text):
        assert (ROOT / path).is_file(), f"{line}: {path} is not there"


def test_every_other_command_is_tagi_and_runs(chain, tmp_path, monkeypatch, capsys):
    predictions = chain / "evaluate" / "copy_input" / "predictions.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
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
    [example] = BLOCKS["python"]
    code = example.replace("runs/adapters", str(tmp_path))
    exec(code.replace("runs/demo/model", str(chain / "model")), {})
    answers = capsys.readouterr().out.strip()
    assert answers.startswith("[")
    assert answers.count("'") + answers.count('"') == 4
    assert (tmp_path / "last-bird" / "adapter_model.safetensors").is_file()

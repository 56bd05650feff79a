import json
import os
import signal
from dataclasses import replace

import pytest
from commands import tagi

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.inference.answering import Answerer
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.inference.model_record import ModelRecord

GIVEN = "Write the last bird of the list."
SHORT = ["--max_new_tokens", "4"]


@pytest.fixture
def predict(chain, capsys):
    """Runs the verb with the chain's model; returns the exit code, its rows and what it says."""

    def run(*options):
        code = tagi(["predict", "--model", chain / "model", *SHORT, *options])
        told = capsys.readouterr()
        return code, [json.loads(line) for line in told.out.splitlines()], told.err

    return run


def test_answers_are_decoded_as_in_the_run_where_nothing_is_said(chain, capsys):
    loaded = InstructedModel.load(chain / "model")
    assert loaded.generation == ModelRecord.of(chain / "model").generation
    assert loaded.decoding(num_beams=2) == replace(loaded.generation, num_beams=2)
    assert loaded.decoding(7, True) == replace(loaded.generation, max_new_tokens=7, stop_at_newline=True)
    assert tagi(["predict", "--model", chain / "model", "--instruction", GIVEN, "--input", "owl: [cat, 1]"]) == 0
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["output"] == loaded.generate(loaded.adapt(GIVEN), ["owl: [cat, 1]"], loaded.generation)[0]


def expected(chain, instruction, inputs):
    loaded = InstructedModel.load(chain / "model")
    return loaded.generate(loaded.adapt(instruction), inputs, GenerationConfig(max_new_tokens=4))


def test_one_input_is_answered_as_in_python(chain, predict):
    code, rows, said = predict("--instruction", GIVEN, "--input", "owl: [cat, 1]")
    assert (code, rows) == (0, [{"id": 1, "output": expected(chain, GIVEN, ["owl: [cat, 1]"])[0]}])
    assert "1 answers in" in said


@pytest.mark.parametrize("text", ["null", "~", "# a comment", "", "[1, 2]", "- a"])
def test_words_are_taken_as_they_are_whatever_they_mean_in_yaml(chain, predict, text):
    code, rows, said = predict("--instruction", text or "null", f"--input={text}")
    assert (code, rows) == (0, [{"id": 1, "output": expected(chain, text or "null", [text])[0]}]), said


def test_a_file_is_answered_in_order_and_bad_lines_are_told(chain, predict, tmp_path):
    lines = [
        {"input": "owl cat crow", "id": "first"},
        {"input": "swan iron robin", "instruction": "Write the first bird of the list."},
        {"inptu": "x"},
        {"input": "owl cat crow", "choices": ["crow", "owl"]},
        {"input": "x", "instruction": "word " * 300},
        {"input": "word " * 300},
    ]
    text = "\n".join(["", "not json", *map(json.dumps, lines)])
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    code, rows, said = predict("--definition", GIVEN, "--inputs", tmp_path / "in.jsonl", "--batch_size", "3")
    assert code == 1
    assert [row["id"] for row in rows] == ["first", 4, 6, 8]
    assert rows[0]["output"] == expected(chain, GIVEN, ["owl cat crow"])[0]
    assert rows[1]["output"] == expected(chain, "Write the first bird of the list.", ["swan iron robin"])[0]
    assert rows[2]["output"] in ("crow", "owl")
    assert len(rows[2]["logprob_mean"]) == 2
    for told in ("line 2 is not JSON", "line 5 has the unknown key", "line 7 cannot be answered: an instruction of"):
        assert told in said
    assert "line 8 is longer than the model reads" in said
    assert "4 answers" in said
    assert "3 lines have none" in said
    assert "Traceback" not in said


def test_standard_input_is_read_and_lines_need_an_instruction(predict, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"input": "a"}\n{"input": "a", "instruction": "b"}\n', encoding="utf-8")
    with (tmp_path / "in.jsonl").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        code, rows, said = predict("--inputs", "-")
    assert (code, [row["id"] for row in rows]) == (1, [2])
    assert "line 1 has no instruction" in said


def test_an_empty_stream_is_no_error(predict, tmp_path):
    (tmp_path / "in.jsonl").touch()
    assert predict("--instruction", GIVEN, "--inputs", tmp_path / "in.jsonl")[:2] == (0, [])


OPTIONS = [
    (["--instruction", "a"], "give one of --input TEXT and --inputs FILE"),
    (["--instruction", "a", "--input", "b", "--inputs", "-"], "give one of --input TEXT and --inputs FILE"),
    (["--input", "b"], "give one of --instruction, --definition and --task"),
    (["--input", "b", "--instruction", "a", "--definition", "c"], "got --instruction and --definition"),
    (["--inputs", "/absent/file", "--instruction", "a"], "No such file or directory: '/absent/file'"),
    (["--input", "b", "--instruction", "a", "--batch_size", "0"], "--batch_size must be at least 1"),
    (["--input", "b", "--instruction", "a", "--num_beams", "0"], "--num_beams must be at least 1, got 0"),
    (["--input", "b", "--instruction", "a", "--max_new_tokens", "-1"], "--max_new_tokens must be at least 1, got -1"),
    (["--input", "b", "--instruction", "a", "--backbone", "/absent"], "where it lies now: --backbone DIR"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_wrong_options_are_told(predict, options, message):
    code, rows, said = predict(*options)
    assert (code, rows) == (1, [])
    assert message in said
    assert "Traceback" not in said


def test_a_closed_output_ends_it_without_a_word(chain, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert tagi(["predict", "--model", chain / "model", "--instruction", GIVEN, "--input", "a", *SHORT]) == 141
        monkeypatch.undo()
    assert "predict" not in capsys.readouterr().err


def test_an_interruption_ends_it_with_its_own_code(predict, monkeypatch):
    def interrupt(self, requests):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Answerer, "__call__", interrupt)
    code, rows, said = predict("--instruction", GIVEN, "--input", "a")
    assert (code, rows) == (130, [])
    assert "tagi predict: stopped by SIGINT" in said
    assert "Traceback" not in said

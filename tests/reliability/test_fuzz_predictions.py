"""Predictions to score and requests to answer, damaged in every way."""

import os

from fuzzing import DEEP, LEFT_OUT, MARKS, READ, damaged_lines, fuzz, fuzz_file, lines, put

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.report import DataError
from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import metrics_text, read_predictions
from tagi_lightning.inference.requests import LineReader, Lines, Request

pytestmark = MARKS

PLAIN = {
    "id": "0",
    "task": "add",
    "category": "sums",
    "dataset": "",
    "template": "",
    "instruction_sha256": "00",
    "prediction": "Größe",
    "references": ["five", "5"],
}
RANKED = PLAIN | {"id": "1", "choices": ["a", "b"], "logprob_sum": [-1.5, -2], "logprob_mean": [-1.5, -1.0], "gold": 1}


def test_predictions(record, tmp_path):
    path = tmp_path / "predictions.jsonl"

    def check(found):
        if max(len(row.prediction) for row in found) < 100:
            metrics_text(aggregate(found)).encode()

    odd = ({"task": ""}, {"task": "\ud800"}, {"logprob_sum": [10**400, 0]}, {"logprob_mean": [float("nan"), 0]})
    known = [b"[" * DEEP, b'{"id": ' + 5_000 * b"9", *(lines(RANKED | {"id": "4"} | each)[:-1] for each in odd)]
    fuzz_file(
        record, "predictions", path, damaged_lines(PLAIN | {"id": "2"}, RANKED | {"id": "3"}),
        lambda: read_predictions(path), DataError, good=lines(PLAIN, RANKED), known=known, check=check,
    )  # fmt: skip


def test_requests(record, tmp_path):
    path, given = tmp_path / "requests.jsonl", Instruction("Say it.")
    good = [{"input": "owl"}, {"id": "x", "input": "a", "instruction": "Copy.", "choices": ["a", "b"]}]
    bad = {"id": 7, "input": "a", "instruction": "Copy.", "demonstrations": [{"input": "1", "output": "2"}]}

    def read():
        refusals = []
        descriptor = os.open(path, os.O_RDONLY)
        try:
            reader = Lines(LineReader(descriptor, 4), given, lambda number, told: refusals.append((number, told)))
            return [each for batch in reader for each in batch], refusals
        finally:
            os.close(descriptor)

    path.write_bytes(lines(*good))
    expected, _ = read()

    def attempt(line):
        put(path, lines(good[0]) + line + b"\n" + lines(good[1]))
        found, refusals = read()
        last = 2 + (line + b"\n").count(b"\n")
        assert found[0] == expected[0]
        assert found[-1] == (last, expected[1][1])
        assert {number for number, _ in refusals}.isdisjoint({1, last})
        assert all(0 < len(told) < 1_000 and told.isprintable() for _, told in refusals)
        for _, request in found:
            assert isinstance(request, Request)
            "".join([str(request.id), request.input, request.instruction.text, *request.choices]).encode()
        return LEFT_OUT if refusals else READ

    known = [b'{"input": ' + 5_000 * b"9", lines({"id": True, "input": "a"})[:-1], b'{"input": "a", "input": "b"}']
    fuzz(record, "requests of tagi predict", damaged_lines(good[1], bad), attempt, known)

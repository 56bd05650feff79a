import json
import os
import threading
import time

import pytest

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.task import Demonstration
from tagi_lightning.inference.requests import MAX_LINE, LineReader, Lines, Request, RequestError, parse_request

GIVEN = Instruction("Say it.")


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)


def batches(descriptor, size=2, pause=0.05):
    return list(LineReader(descriptor, size, pause))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"a", [[b"a"]]),
        (b"a\n", [[b"a"]]),
        (b"a\nb\nc", [[b"a", b"b"], [b"c"]]),
        (b"a\n\nb\n", [[b"a", b""], [b"b"]]),
    ],
)
def test_lines_come_in_full_batches_and_the_last_without_a_break(pipe, text, expected):
    read, write = pipe
    os.write(write, text)
    os.close(write)
    assert batches(read) == expected


def test_a_line_that_is_too_long_is_cut_and_the_next_is_whole(tmp_path):
    (tmp_path / "lines").write_bytes(b"x" * (3 * MAX_LINE) + b"\nnext\n" + b"y" * (MAX_LINE + 5))
    descriptor = os.open(tmp_path / "lines", os.O_RDONLY)
    long, after, last = (line for batch in batches(descriptor) for line in batch)
    os.close(descriptor)
    assert after == b"next"
    assert MAX_LINE < len(long) < 2 * MAX_LINE
    assert len(last) == MAX_LINE + 5


def test_a_batch_is_given_when_the_writer_pauses_and_half_a_line_waits_for_its_end(pipe):
    read, write = pipe
    seen = []

    def follow():
        for batch in LineReader(read, size=10, pause=0.05):
            seen.append((batch, time.monotonic()))

    thread = threading.Thread(target=follow)
    thread.start()
    os.write(write, b"one\ntwo\nthr")
    time.sleep(0.5)
    asked = time.monotonic()
    os.write(write, b"ee\n")
    os.close(write)
    thread.join(timeout=10)
    assert [batch for batch, _ in seen] == [[b"one", b"two"], [b"three"]]
    assert seen[0][1] < asked


def test_a_line_is_a_request_with_what_it_brings(pipe):
    row = {"input": "a", "id": "x", "instruction": "Do.", "choices": ["1", "2"], "output": ["ignored"], "task": "t"}
    row["demonstrations"] = [{"input": "b", "output": "c"}]
    expected = Request("x", Instruction("Do.", (Demonstration("b", "c"),)), "a", ("1", "2"))
    assert parse_request(json.dumps(row).encode(), 7, GIVEN) == expected
    assert parse_request(b'{"input": "a"}', 7, GIVEN) == Request(7, GIVEN, "a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff", "is not UTF-8"),
        (b'{"input": "\\ud800"}', "unpaired surrogate"),
        (b"{", "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"inptu": "a"}', "unknown key 'inptu'"),
        (b'{"id": 1}', "has no input"),
        (b'{"input": 3}', "has an input that is not text"),
        (b'{"input": "a", "id": []}', "has an id"),
        (b'{"input": "a", "choices": []}', "has choices that are no list"),
        (b'{"input": "a", "choices": [1]}', "has choices that are no list"),
        (b'{"input": "a", "instruction": " "}', "has an empty instruction"),
        (b'{"input": "a", "demonstrations": [{"input": "b", "output": "c"}]}', "without an instruction of its own"),
        (b'{"input": "a", "instruction": "b", "demonstrations": ["c"]}', "has demonstrations that are no list"),
    ],
)
def test_a_line_that_asks_for_nothing_says_why(line, message):
    with pytest.raises(RequestError, match=message):
        parse_request(line, 1, GIVEN)


def test_a_line_needs_an_instruction_from_somewhere():
    with pytest.raises(RequestError, match="has no instruction"):
        parse_request(b'{"input": "a"}', 1, None)


def test_bad_lines_are_told_by_number_and_the_others_stay(pipe):
    read, write = pipe
    os.write(write, b'{"input": "a"}\n\nbad\n{"input": "b"}\n')
    os.close(write)
    told = []
    lines = Lines(LineReader(read, 2), GIVEN, lambda number, problem: told.append((number, problem.split(" (")[0])))
    assert [[(number, request.input) for number, request in batch] for batch in lines] == [[(1, "a")], [(4, "b")]]
    assert told == [(3, "is not JSON")]

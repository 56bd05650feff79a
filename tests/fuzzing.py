"""Damaged files for the readers: what stands in them, and what may come of reading one."""

import contextlib
import json
import os
import random
import resource
import signal
from collections import Counter

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
"""Inputs that each reader is given."""

MARKS = [pytest.mark.reliability] if "EXAMPLES" in os.environ else []
"""`make test-reliability` says how many inputs it wants; a plain run of the tests takes a few."""

SECONDS, BYTES, CHARACTERS = 20, 2**31, 5_000
"""What one input may take: time, memory beyond that of the process, and the length of an error message."""

REFUSED, LEFT_OUT, READ = "refused by name", "read with something left out and counted", "read"
AGAIN = "noticed, to be made again"
OTHER = "read as other values, which such a file cannot tell"

DEEP = 100_000
SMALL = (
    *("null", "true", "false", "0", "-1", "3", "1.5", "1e999", "-1e999", "NaN", "Infinity", "-Infinity"),
    *('""', '" "', '"x"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ufdd0"', '"|||"', '"../../x"', '"train"'),
    *("[]", "{}", "[null]", "[[]]", "[1]", '[""]', '["x"]', '["x", "x"]', '["x", 1]', "[NaN]", "[1e999]", '{"": ""}'),
    *('{"x": 1}', '[{"input": "x"}]', '{"n": 1}', '{"x": {"n": 2}}', "1" + "0" * 400, "", "{", '"', "nul", "\\", "\n"),
)
"""Values of a JSON document, and what is none."""
HUGE = (
    json.dumps("x" * 10**6),
    json.dumps("é " * 10**5, ensure_ascii=False),
    "9" * 5_000,
    *("[" * depth + "]" * depth for depth in (100, 900, 980, DEEP)),
    *('{"x": ' * depth + "1" + "}" * depth for depth in (100, 900, 980, DEEP)),
    "[" * DEEP,
    json.dumps([1] * 10**5),
    json.dumps({str(number): 1 for number in range(10**4)}),
)
"""Values that are long or deep."""
NOISE = (b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n")
NOISE += tuple(
    text.encode() for text in (*'"{}[],:\\', "\\u", "\\ud800", "\u2028", "&a ", "*a ", "<<: ", "!!python/name:os ")
)
"""Bytes that do not belong where they are put."""
FLOOD = (b"x" * 10**6, b"[" * DEEP, b"\n" * DEEP, b"{{" * DEEP, b"\0" * 10**6)


def random_texts(count):
    """Returns short texts of any characters that UTF-8 has."""
    draw = random.Random(0)
    codes = [*range(128), *(draw.randrange(0xE000, 0x110000) for _ in range(64)), *range(0xA0, 0x400)]
    return tuple("".join(map(chr, draw.choices(codes, k=draw.randrange(1, 30)))) for _ in range(count))


VALUES = 9 * (*SMALL, *map(json.dumps, random_texts(40))) + HUGE
DAMAGES = (
    *(("cut", None) for _ in range(40)),
    *(("flip", 1 << bit) for bit in range(8) for _ in range(10)),
    *(("put", noise) for noise in 3 * NOISE + FLOOD),
    *(("drop", count) for count in (1, 2, 3, 8, 64) for _ in range(4)),
    *(("repeat", count) for count in (1, 2, 8, 64, 4096) for _ in range(4)),
)
"""What is done to bytes, the usual more often than the huge."""


def gaps(value):
    """Yields the text before and behind every place of a JSON document where a wrong value may stand."""
    yield "", ""
    if isinstance(value, dict):
        for key in value:
            others = "".join(f"{json.dumps(k)}: {json.dumps(v)}, " for k, v in value.items() if k != key)
            own, name = json.dumps(value[key]), json.dumps(key)
            for before, after in gaps(value[key]):
                yield f"{{{others}{name}: {before}", f"{after}}}"
            yield f"{{{others}{name}: {own}, {name}: ", "}"  # given twice
            yield f"{{{others}{json.dumps(key + '_')}: ", "}"  # missing, and another there
    elif isinstance(value, list):
        for place, item in enumerate(value):
            head, tail = (json.dumps(part)[1:-1] for part in (value[:place], value[place + 1 :]))
            for before, after in gaps(item):
                yield f"[{head}{', ' if head else ''}{before}", f"{after}{', ' if tail else ''}{tail}]"


def damaged_json(*documents):
    """Returns a strategy of JSON documents, one of `documents` each, with one wrong value."""
    places = [gap for document in documents for gap in gaps(document)]

    def fill(drawn):
        (before, after), value = drawn
        return f"{before}{value}{after}".encode()

    return st.tuples(st.sampled_from(places), st.sampled_from(VALUES)).map(fill)


def damaged_bytes(*contents):
    """Returns a strategy of one of `contents` cut off, with a bit changed, a part gone, repeated or put in."""
    places = [(content, place) for content in contents for place in range(len(content) + 1)]

    def damage(drawn):
        (content, place), (how, what) = drawn
        before, after = content[:place], content[place:]
        match how:
            case "cut":
                return before
            case "flip":
                return before + bytes(byte ^ what for byte in after[:1]) + after[1:]
            case "put":
                return before + what + after
            case "drop":
                return before + after[what:]
        return before + after[:what] + after

    return st.tuples(st.sampled_from(places), st.sampled_from(DAMAGES)).map(damage)


def lines(*rows):
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def damaged_lines(*rows):
    """Returns a strategy of a line of JSON that is damaged, one of `rows` before that; it may hold line breaks."""
    return damaged_json(*rows) | damaged_bytes(*(json.dumps(row).encode() for row in rows))


def damaged_file(content):
    """Returns a strategy of a damaged file of JSON or YAML, its values or its bytes."""
    return damaged_json(yaml.safe_load(content)) | damaged_bytes(content)


def put(path, content):
    """Writes a file anew: to empty one that is there makes some file systems write it to the disk at once."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refused(read, error, *names):
    """Returns what `read()` returns; None where it raised `error`, whose message names what was read and is short."""
    try:
        return read()
    except error as problem:
        message = str(problem)
        assert all(str(name) in message for name in names), message[:CHARACTERS]
        assert len(message) <= CHARACTERS
        message.encode()  # it can be printed
        return None


def kind(report):
    """Returns what came of data that were read with a report."""
    return REFUSED if report.errors else LEFT_OUT if report.notes else READ


@contextlib.contextmanager
def limited():
    """Ends what takes too long or too much memory with an error."""

    def stop(number, frame):
        raise AssertionError(f"no end within {SECONDS} seconds")

    own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (own + BYTES, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(record, reader, inputs, attempt, known=()):
    """Gives a reader `EXAMPLES` inputs, and records what came of them.

    Args:
        record: The fixture that writes the record.
        reader: What the record calls it.
        inputs: Strategy of the inputs.
        attempt: Reads one input and returns one of the outcomes above; all else is a fault.
        known: Inputs that were faults once, which come first.
    """
    outcomes = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(inputs)
    def every(drawn):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        outcomes[attempt(drawn)] += 1

    for each in known:
        every = example(each)(every)
    with limited():
        every()
    if MARKS:
        told = ", ".join(
            f"{outcomes[kind]:,} {kind}" for kind in (REFUSED, AGAIN, LEFT_OUT, READ, OTHER) if outcomes[kind]
        )
        record(f"Damaged {reader}", outcomes.total(), told)


def fuzz_file(record, reader, path, inputs, read, error, *, named=None, good=b"", known=(), check=lambda found: None):
    """Gives a reader a file with damaged content, which it must refuse by name or read.

    Args:
        record: As `fuzz` takes it.
        reader: As `fuzz` takes it.
        path: The file.
        inputs: Strategy of its content.
        read: Reads the file; never returns None.
        error: What it raises of a file that it refuses.
        named: What its message names; the file where None is given.
        good: What stands before the damaged content, and must be read as without it.
        known: Inputs that were faults once, which come first.
        check: Asserts what must hold of all that is read.
    """
    put(path, good)
    expected = read() if good else []

    def attempt(content):
        put(path, good + content + b"\n" if good else content)
        found = refused(read, error, named or path)
        if found is None:
            return REFUSED
        assert not good or found[: len(expected)] == expected
        check(found)
        return READ

    fuzz(record, reader, inputs, attempt, known)

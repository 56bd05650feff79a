"""Lines of JSON that ask for answers, from a file or as they arrive."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.data.task import Demonstration

CHUNK = 2**16
MAX_LINE = 2**20
"""Bytes of a line at most."""

TEXTS = ("instruction", "input")
ELSEWHERE = ("task", "output", "category", "split")
"""Keys of a task set's rows that say nothing here."""
KNOWN = ("id", "choices", "demonstrations", *TEXTS, *ELSEWHERE)


class RequestError(ValueError):
    """A line that asks for nothing that can be answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """One input to answer.

    Attributes:
        id: The line's id, or its number where it has none.
        instruction: Its instruction.
        input: The input.
        choices: Answers to choose from; empty to generate.
    """

    id: str | int
    instruction: Instruction
    input: str
    choices: tuple[str, ...] = ()


def parse_request(line: bytes, number: int, instruction: Instruction | None) -> Request:
    """Returns what one line asks.

    Args:
        line: The line.
        number: Its number, from 1.
        instruction: That of lines that bring none.

    Raises:
        RequestError: If it asks for nothing; the message tells why, without the number.
    """
    try:
        row = parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise RequestError("is not UTF-8") from error
    except ValueError as error:
        raise RequestError(f"is not JSON ({shortened(str(error))})") from error
    if not isinstance(row, dict):
        raise RequestError('is no JSON object such as {"input": "..."}')
    if unknown := sorted(row.keys() - set(KNOWN)):
        raise RequestError(f"has the unknown key {shortened(repr(unknown[0]))}; known: {', '.join(KNOWN)}")
    if "input" not in row:
        raise RequestError("has no input")
    if wrong := [key for key in TEXTS if key in row and not isinstance(row[key], str)]:
        raise RequestError(f"has an {wrong[0]} that is not text")
    if not isinstance(row.get("id", ""), (str, int)) or isinstance(row.get("id"), bool):
        raise RequestError("has an id that is neither text nor a whole number")
    choices = row.get("choices", [])
    if "choices" in row and not (isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)):
        raise RequestError("has choices that are no list of texts")
    return Request(row.get("id", number), _instruction(row, instruction), row["input"], tuple(choices))


def _instruction(row: dict[str, object], given: Instruction | None) -> Instruction:
    shown = row.get("demonstrations", [])
    if not isinstance(shown, list) or any(
        not isinstance(each, dict) or not isinstance(each.get("input"), str) or not isinstance(each.get("output"), str)
        for each in shown
    ):
        raise RequestError('has demonstrations that are no list of {"input": "...", "output": "..."}')
    text = str(row.get("instruction", ""))
    if "instruction" not in row:
        if given is None:
            raise RequestError("has no instruction, and no option gives one for all lines")
        if shown:
            raise RequestError("has demonstrations without an instruction of its own")
        return given
    if not text.strip():
        raise RequestError("has an empty instruction")
    return Instruction(text, tuple(Demonstration(each["input"], each["output"]) for each in shown))


class LineReader:
    """Lines of a file descriptor in batches: one is given when it is full, or when what writes the lines pauses.

    Nothing is read ahead but one chunk, so that a stream of any length takes little memory, and whoever writes waits.
    """

    def __init__(self, descriptor: int, size: int, pause: float = 0.05) -> None:
        """Takes what to read.

        Args:
            descriptor: File, pipe or terminal.
            size: Lines of a batch at most.
            pause: Seconds without a new line after which a batch is given as it is.
        """
        self.descriptor, self.size, self.pause = descriptor, size, pause
        self._buffer, self._start, self._ended = bytearray(), 0, False

    def __iter__(self) -> Iterator[list[bytes]]:
        """Yields batches of lines without their line breaks; a line that is too long is cut behind `MAX_LINE` bytes."""
        while True:
            batch: list[bytes] = []
            while len(batch) < self.size and (line := self._line(wait=not batch)) is not None:
                batch.append(line)
            if batch:
                yield batch
            elif self._ended:
                return

    def _line(self, wait: bool) -> bytes | None:
        """Returns the next line; None at the end, and where none comes in time and none is waited for."""
        skipping = b""
        while True:
            place = self._buffer.find(b"\n", self._start)
            if place >= 0:
                line = skipping or bytes(self._buffer[self._start : place])
                self._start = place + 1
                return line
            if len(self._buffer) - self._start > MAX_LINE:
                skipping = bytes(self._buffer[self._start :])
                self._buffer, self._start = bytearray(), 0
            if self._ended:
                line, self._buffer, self._start = skipping or bytes(self._buffer[self._start :]), bytearray(), 0
                return line or None
            if not (wait or skipping) and not select.select([self.descriptor], [], [], self.pause)[0]:
                return None
            self._read()

    def _read(self) -> None:
        chunk = os.read(self.descriptor, CHUNK)
        self._ended = not chunk
        self._buffer = self._buffer[self._start :] + chunk
        self._start = 0


@dataclass
class Lines:
    """Parses batches of lines, and tells of those that ask for nothing.

    Attributes:
        reader: Gives the lines.
        instruction: That of lines that bring none.
        refuse: Is told the number of a bad line and what is wrong with it.
    """

    reader: LineReader
    instruction: Instruction | None
    refuse: Callable[[int, str], None]

    def __iter__(self) -> Iterator[list[tuple[int, Request]]]:
        """Yields batches of requests with their lines' numbers; empty lines are left out."""
        number = 0
        for batch in self.reader:
            found = []
            for line in batch:
                number += 1
                if not line.strip():
                    continue
                try:
                    if len(line) > MAX_LINE:
                        raise RequestError(f"is longer than {MAX_LINE} bytes")
                    found.append((number, parse_request(line, number, self.instruction)))
                except RequestError as error:
                    self.refuse(number, str(error))
            if found:
                yield found

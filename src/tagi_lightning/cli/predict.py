"""`tagi predict`: answers inputs by an instruction's adapter, as lines of JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Literal

from tagi_lightning.cli.command import options_of, say
from tagi_lightning.cli.instructions import one_instruction
from tagi_lightning.data.ranges import check_range

if TYPE_CHECKING:
    from tagi_lightning.inference.answering import Answerer
    from tagi_lightning.inference.requests import Request


def predict(
    model: str,
    instruction: str | None = None,
    definition: str | None = None,
    positive: list[dict[str, str]] | None = None,
    task: str | None = None,
    input: str | None = None,
    inputs: str | None = None,
    backbone: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    stop_at_newline: bool | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
) -> int:
    """Print one line of JSON for each input: {"id": ..., "output": ...}, in the order of the inputs.

    Lines of --inputs are such as {"input": "owl cat crow"}, and may bring id, instruction, demonstrations, and choices,
    of which the likeliest is the answer. A line that cannot be answered is told on standard error by its number, and
    the others are answered. Exit codes: 0 all answered, 1 not all, 130 interrupted, 141 standard output was closed.

    Args:
        model: Folder of a trained hypernetwork, e.g. runs/demo/model, or id on the Hugging Face hub.
        instruction: What the task is, in words; lines may bring their own instead.
        definition: The same under Super-NaturalInstructions' name.
        positive: Worked examples beside it: '[{"input": "2 3", "output": "5"}]'.
        task: A task file in Super-NaturalInstructions' schema, whose definition and examples are taken.
        input: One input.
        inputs: File of JSON lines, or - for standard input, which is answered as it comes.
        backbone: Where the backbone lies; null for where it lay in training.
        batch_size: Inputs answered together at most.
        max_new_tokens: Longest answer in tokens; null for as the model's run decodes.
        num_beams: Beams; 1 is greedy.
        stop_at_newline: Stop at the first line break; null for as the model's run decodes.
        dtype: Type the backbone is stored in.
        device: Where to compute, e.g. cuda.
    """
    if (input is None) == (inputs is None):
        raise ValueError("give one of --input TEXT and --inputs FILE (- for standard input), which say what to answer")
    counts = {"--batch_size": batch_size, "--max_new_tokens": max_new_tokens, "--num_beams": num_beams}
    check_range(counts, least=1)
    given = one_instruction(instruction, definition, positive, task)
    if input is not None and given is None:
        raise ValueError("give one of --instruction, --definition and --task, which say what the task is")
    descriptor = -1 if inputs is None else sys.stdin.fileno() if inputs == "-" else os.open(inputs, os.O_RDONLY)

    from tagi_lightning.cli.quiet import without_loading_bars
    from tagi_lightning.inference.answering import Answerer
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.inference.requests import LineReader, Lines, Request

    without_loading_bars()
    loaded = InstructedModel.load(model, backbone, dtype, device)
    generation = loaded.decoding(max_new_tokens=max_new_tokens, num_beams=num_beams, stop_at_newline=stop_at_newline)
    printer = Printer(Answerer(loaded, generation))
    if input is not None:
        assert given is not None
        printer.print([(1, Request(1, given, input))])
    else:
        for requests in Lines(LineReader(descriptor, batch_size), given, printer.refuse):
            printer.print(requests)
    return printer.finish()


class Printer:
    """Prints answers and counts them."""

    def __init__(self, answerer: Answerer) -> None:
        from tqdm import tqdm

        self.answerer = answerer
        self.answered = self.refused = 0
        self.start = time.monotonic()
        # only a terminal gets a bar
        self.bar = tqdm(unit=" answers", disable=None, file=sys.stderr, leave=False)

    def print(self, requests: list[tuple[int, Request]]) -> None:
        """Answers requests with their lines' numbers."""
        answers = self.answerer([request for _, request in requests])
        for (number, request), answer in zip(requests, answers, strict=True):
            if isinstance(answer, ValueError):
                self.refuse(number, f"cannot be answered: {answer}")
                continue
            if answer.cut:
                say("predict", f"line {number} is longer than the model reads; its end was left out")
            self.answered += 1
            print(json.dumps(answer.to_json(request), ensure_ascii=False))
        sys.stdout.flush()
        self.bar.update(len(requests))

    def refuse(self, number: int, problem: str) -> None:
        """Tells a line that gets no answer."""
        self.refused += 1
        say("predict", f"line {number} {problem}")

    def finish(self) -> int:
        """Tells how much was done; returns the exit code."""
        self.bar.close()
        seconds = time.monotonic() - self.start
        bad = f"; {self.refused} lines have none" if self.refused else ""
        say(
            "predict",
            f"{self.answered} answers in {seconds:.1f} s, {self.answerer.cache.misses} instructions read{bad}",
        )
        return 1 if self.refused else 0


main = options_of(predict, texts=("instruction", "definition", "input"))

"""Answers to requests of any instructions, in their order; each instruction is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.caches.adapters import AdapterCache
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.inference.requests import Request


@dataclass(frozen=True)
class Answer:
    """What a request got.

    Attributes:
        text: The generated answer, or the likeliest choice per token.
        logprob_sum: Log-likelihood of each choice summed over its tokens; empty where the answer was generated.
        logprob_mean: The same per token.
        cut: Whether the input was too long to be read whole.
    """

    text: str
    logprob_sum: tuple[float, ...] = ()
    logprob_mean: tuple[float, ...] = ()
    cut: bool = False

    def to_json(self, request: Request) -> dict[str, Any]:
        """Returns the answer as it stands in a line."""
        row: dict[str, Any] = {"id": request.id, "output": self.text}
        if request.choices:
            row |= {"choices": request.choices, "logprob_sum": self.logprob_sum, "logprob_mean": self.logprob_mean}
        return row


class Answerer:
    """Answers batches of requests.

    Attributes:
        cache: Adapters of the instructions that were asked for of late.
    """

    def __init__(
        self,
        loaded: InstructedModel,
        generation: GenerationConfig | None = None,
        max_bytes: int = 2**30,
    ) -> None:
        """Takes the model.

        Args:
            loaded: The model.
            generation: How to decode where there are no choices; None for as the model's run does.
            max_bytes: Bytes of all adapters that are kept.
        """
        self.loaded, self.generation = loaded, generation or loaded.generation
        self.cache = AdapterCache(loaded.model, max_bytes)

    def __call__(self, requests: Sequence[Request]) -> list[Answer | ValueError]:
        """Returns what each request got, in their order: an answer, or why there is none."""
        if not requests:
            return []
        try:
            return self._answer_together(requests)
        except ValueError as error:
            if len(requests) == 1:
                return [error]
            half = len(requests) // 2  # each half apart, until who is to blame stands alone
            return [*self(requests[:half]), *self(requests[half:])]

    def _answer_together(self, requests: Sequence[Request]) -> list[Answer | ValueError]:
        loaded = self.loaded
        instructions = list(dict.fromkeys(request.instruction for request in requests))
        rows = {instruction: row for row, instruction in enumerate(instructions)}
        order = sorted(range(len(requests)), key=lambda place: rows[requests[place].instruction])
        grouped = [requests[place] for place in order]
        answers = loaded.answer(
            self.cache(loaded.read(instructions)),
            instructions,
            [rows[request.instruction] for request in grouped],
            [request.input for request in grouped],
            self.generation,
            [request.choices for request in grouped],
        )
        sums = answers.logprob_sum or [()] * len(grouped)
        means = answers.logprob_mean or [()] * len(grouped)
        told = [
            Answer(text, total, mean, self._cuts(request))
            for request, text, total, mean in zip(grouped, answers.texts, sums, means, strict=True)
        ]
        by_place = dict(zip(order, told, strict=True))
        return [by_place[place] for place in range(len(requests))]

    def _cuts(self, request: Request) -> bool:
        read = request.instruction if self.loaded.model.config.reads == "prompt" else None
        return self.loaded.prompts.cuts(self.loaded.tokenizer, request.input, read)

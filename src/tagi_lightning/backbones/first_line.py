"""Answers of one line: where decoding stops, and where it may not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class FirstLine(StoppingCriteria):
    """Ends a row at the line break after its first line that is not blank."""

    def __init__(self, newline_ids: tuple[int, ...], blank_ids: tuple[int, ...], start: int) -> None:
        """Takes what to look for.

        Args:
            newline_ids: Tokens that hold a line break.
            blank_ids: Tokens of white space alone.
            start: Tokens of the prompt.
        """
        self.newlines, self.blanks, self.start = torch.tensor(newline_ids), torch.tensor(blank_ids), start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows of prompt and answer so far [B, S + O] have ended [B]."""
        answers = input_ids[:, self.start :]
        return _said(answers, self.blanks) & torch.isin(answers[:, -1], self.newlines.to(answers.device))


class NeverBlank(LogitsProcessor):
    """Forbids a row to end before it has a line that is not blank.

    A plain prompt often makes an instruction-tuned model open with line breaks and end there.
    """

    def __init__(self, end_ids: tuple[int, ...], blank_ids: tuple[int, ...], start: int) -> None:
        """Takes what to look for.

        Args:
            end_ids: Tokens that end an answer.
            blank_ids: Tokens of white space alone.
            start: Tokens of the prompt.
        """
        self.ends, self.blanks, self.start = list(end_ids), torch.tensor(blank_ids), start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Returns the next tokens' scores [B, vocabulary] after prompt and answer so far [B, S + O]."""
        silent = ~_said(input_ids[:, self.start :], self.blanks)
        scores = scores.clone()
        scores[:, self.ends] = scores[:, self.ends].masked_fill(silent[:, None], float("-inf"))
        return scores


def _said(answers: Tensor, blanks: Tensor) -> Tensor:
    return ~torch.isin(answers, blanks.to(answers.device)).all(1)

"""Answers of one line: where decoding stops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


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
        said = ~torch.isin(answers, self.blanks.to(answers.device)).all(1)
        return said & torch.isin(answers[:, -1], self.newlines.to(answers.device))

"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: What was looked at.
        state: ok, warning (it works, but not as well as it could) or problem (something will not work).
        text: What was found.
        advice: What to do, where it is not ok.
    """

    check: str
    state: State
    text: str
    advice: str = ""

    def line(self) -> str:
        """Returns the finding as one line of text."""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.state:<8} {self.check}: {self.text}{advice}"

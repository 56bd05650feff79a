"""Problems of a data folder, collected and told together, before anything is trained."""

from __future__ import annotations

from collections import defaultdict

MAX_KINDS, MAX_SHOWN = 20, 5
"""How many kinds of problem an error message names, and how many places of each."""

MAX_CHARACTERS = 400
"""Characters that it shows of a kind or a place, which may quote what a file holds."""


class DataError(ValueError):
    """Data that cannot be used; the message names every problem with counts and what to do."""


def shortened(text: str, characters: int = MAX_CHARACTERS) -> str:
    """Returns a text as a message shows it: without its middle where it is too long, half characters as escapes."""
    text = text.encode(errors="backslashreplace").decode()
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} ... {text[-half:]}"


class DataReport:
    """Collects what was wrong with (errors) and what was left out of (notes) a data folder."""

    def __init__(self, source: str) -> None:
        """Starts an empty report about `source`, a folder or file."""
        self.source = source
        self.errors: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)

    def error(self, kind: str, where: str) -> None:
        """Records a problem that stops the run: `kind` in words, `where` it is (file, row or value)."""
        self.errors[kind].append(where)

    def note(self, kind: str, where: str) -> None:
        """Records something left out or repaired that is no error."""
        self.notes[kind].append(where)

    @staticmethod
    def _lines(found: dict[str, list[str]]) -> list[str]:
        lines = []
        for kind, places in list(found.items())[:MAX_KINDS]:
            more = f" and {len(places) - MAX_SHOWN} more" if len(places) > MAX_SHOWN else ""
            lines.append(f"  {len(places)} x {shortened(kind)}: {', '.join(map(shortened, places[:MAX_SHOWN]))}{more}")
        return [*lines, f"  and {len(found) - MAX_KINDS} more kinds"] if len(found) > MAX_KINDS else lines

    def summary(self) -> str:
        """Returns the notes as lines of text, empty where there are none."""
        return "\n".join([f"{self.source}:", *self._lines(self.notes)]) if self.notes else ""

    def raise_if_errors(self, advice: str = "") -> None:
        """Raises one `DataError` that tells every recorded error.

        Args:
            advice: What to do about it, added as the last line.

        Raises:
            DataError: If any error was recorded.
        """
        if not self.errors:
            return
        lines = [f"{self.source} cannot be used:", *self._lines(self.errors)]
        if advice:
            lines.append(advice)
        raise DataError("\n".join(lines))

"""The same instruction in other words: a second phrasing where the task has one, a rewrite by table elsewhere.

What a score under these words can show, and what not:

- A second phrasing is its author's own. The synthetic tasks have three, and training draws among all of them, so there
  it shows that an unseen task does not hang on one phrasing, and nothing about words that training never had.
- The rewrite swaps common words and turns of the official definitions ("in this task, you are given" becomes "here you
  get") by a fixed table; what is quoted or bracketed stays, and the order of sentences too. It is shallow: a loss under
  it shows that surface counts, no loss shows nothing about how people would put the same task. No one has read the
  results one by one.
- Demonstrations, inputs and references stay as they are. Of P3's prompts only the instruction is rewritten, not the
  filled-in template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import yaml

from tagi_lightning.data.task import Task

PREFIX = "Here is what to do. "
"""Stands before a definition in which the table finds nothing."""

_KEPT = r"\"[^\"\n]*\"|“[^”\n]*”|`[^`\n]*`|(?<!\w)'[^'\n]*'(?!\w)|\[[^\]\n]*\]|\{[^}\n]*\}|<[^>\n]*>"
"""Quoted and bracketed text: labels and fields."""


@cache
def _table() -> dict[str, str]:
    text = resources.files("tagi_lightning.data").joinpath("paraphrases.yaml").read_text(encoding="utf-8")
    return {str(old): str(new) for old, new in yaml.safe_load(text).items()}


@cache
def _pattern() -> re.Pattern[str]:
    turns = "|".join(re.escape(old) for old in sorted(_table(), key=len, reverse=True))
    return re.compile(rf"(?P<kept>{_KEPT})|(?<![\w-])(?:{turns})(?![\w-])", re.IGNORECASE)


def rewrite(definition: str) -> str:
    """Returns a definition in the table's words, in one pass from left to right, the longest turn first."""

    def swap(match: re.Match[str]) -> str:
        found = match.group()
        if match["kept"] is not None:
            return found
        new = _table()[found.lower()]
        return new[0].upper() + new[1:] if found[0].isupper() else new

    written = _pattern().sub(swap, definition)
    return written if written != definition else PREFIX + definition


def paraphrase(task: Task) -> Task:
    """Returns the task with its second phrasing as the only one, or with its definition rewritten."""
    own = task.definitions[1] if len(task.definitions) > 1 else rewrite(task.definitions[0])
    return replace(task, definitions=(own,))


@dataclass(frozen=True)
class ParaphraseCounts:
    """Where the other words of a task set come from.

    Attributes:
        own: Tasks with a second phrasing of their own.
        rewritten: Tasks whose definition was rewritten.
        changed_words: Mean share of a rewritten definition's words that are not in the original, 0 to 1.
    """

    own: int
    rewritten: int
    changed_words: float


def count_paraphrases(tasks: Sequence[Task]) -> ParaphraseCounts:
    """Counts what `paraphrase` does to `tasks`."""
    single = [task for task in tasks if len(task.definitions) == 1]
    shares = []
    for task in single:
        words = paraphrase(task).definitions[0].lower().split()
        before = set(task.definitions[0].lower().split())
        shares.append(sum(word not in before for word in words) / len(words))
    own = sum(len(task.definitions) > 1 for task in tasks)
    return ParaphraseCounts(own, len(single), round(sum(shares) / len(shares), 4) if shares else 0.0)

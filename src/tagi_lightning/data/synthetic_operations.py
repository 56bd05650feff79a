"""What the synthetic tasks are made of: subjects (classes of words) and operations on lists of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SUBJECTS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "horse", "cow", "goat", "lion", "rabbit", "mouse"),
    "colour": ("red", "blue", "green", "black", "white", "brown", "pink", "grey"),
    "fruit": ("apple", "pear", "plum", "cherry", "lemon", "grape", "peach", "melon"),
    "tool": ("hammer", "saw", "drill", "spade", "wrench", "chisel", "rake", "axe"),
    "metal": ("iron", "gold", "silver", "copper", "tin", "zinc", "lead", "nickel"),
    "bird": ("eagle", "owl", "crow", "duck", "robin", "swan", "parrot", "goose"),
    "drink": ("water", "milk", "tea", "coffee", "juice", "wine", "beer", "cocoa"),
    "tree": ("oak", "pine", "birch", "maple", "willow", "cedar", "elm", "ash"),
    "vehicle": ("car", "bus", "train", "boat", "bike", "truck", "plane", "tram"),
    "sport": ("tennis", "golf", "hockey", "rugby", "boxing", "judo", "chess", "rowing"),
    "garment": ("shirt", "coat", "hat", "sock", "glove", "scarf", "skirt", "belt"),
    "instrument": ("piano", "violin", "drum", "flute", "harp", "trumpet", "cello", "banjo"),
}
"""Words of each subject; no word belongs to two."""

MAX_ANSWER_WORDS = 3
"""Longest answer an operation may give."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A way to answer from a list of words and the places where the subject's words stand.

    Attributes:
        name: The category of its tasks.
        phrasings: Definitions with `{subject}` to fill in.
        answer: Maps (words, places of the subject's words) to the answer, empty where it has none.
    """

    name: str
    phrasings: tuple[str, ...]
    answer: Callable[[Sequence[str], Sequence[int]], list[str]]

    def apply(self, words: Sequence[str], subject: str) -> list[str]:
        """Returns the answer for `subject`, empty where `words` do not define one of one to three words."""
        members = SUBJECTS[subject]
        answer = self.answer(words, [place for place, word in enumerate(words) if word in members])
        return answer if len(answer) <= MAX_ANSWER_WORDS else []


def _first(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[place] for place in places[:1]]


def _last(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[place] for place in places[-1:]]


def _keep(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[place] for place in places]


def _reverse(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[place] for place in reversed(places)] if len(places) > 1 else []


def _before(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[places[0] - 1]] if len(places) == 1 and places[0] > 0 else []


def _after(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[places[0] + 1]] if len(places) == 1 and places[0] + 1 < len(words) else []


def _only(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return [words[places[0]]] if len(places) == 1 else []


def _twice(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return _only(words, places) * 2


def _thrice(words: Sequence[str], places: Sequence[int]) -> list[str]:
    return _only(words, places) * 3


def _opening(words: Sequence[str], places: Sequence[int]) -> list[str]:
    only = _only(words, places)
    return ["here", *only] if only else []


def _closing(words: Sequence[str], places: Sequence[int]) -> list[str]:
    only = _only(words, places)
    return [*only, "done"] if only else []


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "first",
        (
            "write the first {subject} of the list",
            "answer with the {subject} that comes first in the list",
            "find the {subject} nearest to the start of the list",
        ),
        _first,
    ),
    Operation(
        "last",
        (
            "write the last {subject} of the list",
            "answer with the {subject} that comes last in the list",
            "find the {subject} nearest to the end of the list",
        ),
        _last,
    ),
    Operation(
        "keep",
        (
            "write every {subject} of the list and nothing else",
            "keep each {subject} and leave out all other words",
            "answer with only the {subject} words of the list",
        ),
        _keep,
    ),
    Operation(
        "reverse",
        (
            "write every {subject} of the list in reverse order",
            "answer with each {subject} going from end to start",
            "turn the order of the {subject} words around",
        ),
        _reverse,
    ),
    Operation(
        "before",
        (
            "write the word right before the {subject}",
            "answer with the word that comes just before the {subject}",
            "find the {subject} and write the word to its left",
        ),
        _before,
    ),
    Operation(
        "after",
        (
            "write the word right after the {subject}",
            "answer with the word that comes just after the {subject}",
            "find the {subject} and write the word to its right",
        ),
        _after,
    ),
    Operation(
        "twice",
        (
            "write the {subject} of the list two times",
            "answer with two copies of the {subject}",
            "find the {subject} and say it two times",
        ),
        _twice,
    ),
    Operation(
        "thrice",
        (
            "write the {subject} of the list three times",
            "answer with three copies of the {subject}",
            "find the {subject} and say it three times",
        ),
        _thrice,
    ),
    Operation(
        "opening",
        (
            "write the word here and then the {subject}",
            "answer with here followed by the {subject}",
            "find the {subject} and put here before it",
        ),
        _opening,
    ),
    Operation(
        "closing",
        (
            "write the {subject} and then the word done",
            "answer with the {subject} followed by done",
            "find the {subject} and put done after it",
        ),
        _closing,
    ),
)
"""The operations; each is a category of tasks."""

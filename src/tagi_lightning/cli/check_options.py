"""Every option that is wrong, not only the first: a wrong one is told, taken out, and the rest is tried again."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from tagi_lightning.cli.errors import TOLD_ERRORS, brief
from tagi_lightning.data.tokenizer import TokenizerError
from tagi_lightning.options import flatten

NO_TOKENIZER = "no-tokenizer"
"""Stands for the tokenizer where none is found, so that the rest can be looked at."""

Built = TypeVar("Built")


class Problems(list[str]):
    """What is wrong, each said once."""

    def tell(self, text: str) -> None:
        """Adds a problem, unless it was told before."""
        if text not in self:
            self.append(text)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Tells the error that ends the block, and goes on after it."""
        try:
            yield
        except TOLD_ERRORS as error:
            self.tell(str(error))


@dataclass(frozen=True)
class Source:
    """Some options as they were given: one on the command line, or those of a configuration.

    Attributes:
        words: The words of the command line.
        name: What messages call it.
        values: What a configuration says, references as written; None for an option.
    """

    words: tuple[str, ...]
    name: str = "command line"
    values: dict[str, Any] | None = None

    def leaves(self) -> list[tuple[str, Any]]:
        """Returns the dotted names of its options with their values."""
        if self.values is not None:
            return list(flatten(self.values))
        name, _, value = self.words[0].removeprefix("--").partition("=")
        return [(name, value or " ".join(self.words[1:]))]

    def without(self, name: str) -> Source | None:
        """Returns the source without one option; None where nothing is left."""
        if self.values is None:
            return None
        values = copy.deepcopy(self.values)
        *above, last = name.split(".")
        inner = values
        for key in above:
            inner = inner[key]
        del inner[last]
        return replace(self, words=("--config", yaml.safe_dump(values)), values=values)


def read_sources(args: Sequence[str], problems: Problems) -> list[Source]:
    """Takes a command line apart; configurations that cannot be read are told and left out."""
    sources: list[Source] = []
    for word in args:
        if word.startswith("--") or word == "-c":
            sources.append(Source(("--config" if word == "-c" else word,)))
        elif sources:
            sources[-1] = Source((*sources[-1].words, word))
        else:
            problems.tell(f"{word!r} belongs to no option; options are --name value or --name=value")
    read = (_read_config(source, problems) if _is_config(source) else source for source in sources)
    return [source for source in read if source is not None]


def _is_config(source: Source) -> bool:
    return source.words[0] == "--config" or source.words[0].startswith("--config=")


def _read_config(source: Source, problems: Problems) -> Source | None:
    [(_, given)] = source.leaves()
    is_text = "\n" in given or given.lstrip().startswith("{")
    try:
        loaded = OmegaConf.create(given) if is_text else OmegaConf.load(Path(given))
        values = OmegaConf.to_container(loaded)
    except FileNotFoundError:
        problems.tell(f"there is no configuration {given}")
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.tell(f"{'--config' if is_text else given} cannot be read as YAML: {' '.join(str(error).split())}")
        return None
    if not isinstance(values, dict):
        problems.tell(f"{given} is no mapping of options to values")
        return None
    return replace(source, name="--config" if is_text else given, values=values)  # type: ignore[arg-type]


def build(
    sources: list[Source], construct: Callable[[list[str]], Built], problems: Problems
) -> tuple[Built | None, set[str]]:
    """Calls `construct` with the options, and again without each one that it refuses, until it succeeds.

    Args:
        sources: The options.
        construct: Makes something of a command line.
        problems: Receives what is wrong.

    Returns:
        What `construct` returned, None where it cannot, and the names of options that were taken out.
    """
    removed: set[str] = set()
    result = _attempt(sources, construct)
    while isinstance(result, Exception):
        message = str(result)
        if isinstance(result, TokenizerError) and "tokenizer" not in removed:
            problems.tell(message)
            sources, name = [*sources, Source((f"--tokenizer={NO_TOKENIZER}",))], "tokenizer"
            result = _attempt(sources, construct)
        else:
            found = _without_culprit(sources, construct, message)
            if found is None:
                problems.tell(brief(message))
                return None, removed
            source, name, sources, result = found
            problems.tell(f"{source.name}: {name}: {brief(message)}")
        removed.add(name)
        if name in ("model.class_path", "data.class_path"):  # without it, no other option means anything
            return None, removed
    return result, removed


def _attempt(sources: list[Source], construct: Callable[[list[str]], Built]) -> Built | Exception:
    try:
        return construct([word for source in sources for word in source.words])
    except (argparse.ArgumentError, *TOLD_ERRORS) as error:
        return error


def _without_culprit(
    sources: list[Source], construct: Callable[[list[str]], Built], message: str
) -> tuple[Source, str, list[Source], Built | Exception] | None:
    """Returns the option whose absence makes a message go away, the other options, and what comes of them."""
    text = message.partition("Given value")[0].replace("given class_path", "")
    candidates = [
        (_closeness(text, name, value), place, name)
        for place, source in enumerate(sources)
        for name, value in source.leaves()
    ]
    for closeness, place, name in sorted(candidates, key=lambda each: (-each[0], -each[1])):
        if not closeness:
            break
        kept = sources[place].without(name)
        others = [*sources[:place], *([kept] if kept else []), *sources[place + 1 :]]
        result = _attempt(others, construct)
        if str(result) != message:
            return sources[place], name, others, result
    return None


def _closeness(text: str, name: str, value: Any) -> int:
    """Returns how much of an option a message names: its whole name, its last part, its value, or nothing."""

    def named(word: str) -> bool:
        return bool(word) and re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", text) is not None

    parts = name.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    longest = next((len(parts) - start for start, end in enumerate(ends) if named(end)), 0)
    return 2 * longest + named(str(value))

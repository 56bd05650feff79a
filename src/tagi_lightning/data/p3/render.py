"""A template, compiled once and filled in row by row."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from tagi_lightning.data.p3.limits import (
    FILL,
    FILL_END,
    MAX_CHARACTERS,
    STATE,
    TELL,
    TELL_END,
    Choices,
    LimitError,
    RenderState,
    RowProblem,
    remove_marks,
)
from tagi_lightning.data.p3.mask import mask
from tagi_lightning.data.p3.rewrite import (
    SEPARATOR,
    TemplateProblem,
    check_constructs,
    holds_separator,
    rewrite,
    survey,
)
from tagi_lightning.data.p3.sandbox import TemplateEnvironment
from tagi_lightning.data.p3.templates import TemplateSource
from tagi_lightning.data.report import shortened

PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Stands for ||| within a row's text while it is rendered; promptsource's, as templates split by it."""
MAX_SOURCE = 50_000
"""Characters a template's source may have."""
MAX_TARGETS = 32
"""Targets kept of a template whose target is a `choice`."""

_MARKED = re.compile(f"{FILL}([^{FILL_END}]*){FILL_END}|{TELL}([^{TELL_END}]*){TELL_END}")
_TOLD = re.compile(f"{TELL}[^{TELL_END}]*{TELL_END}")


@dataclass(frozen=True, slots=True)
class Filled:
    """A template filled in with one row.

    Attributes:
        prompt: The complete prompt.
        fields: What the row filled into the prompt, in order of first use, one a line.
        targets: Acceptable outputs; where the template chooses one by chance, that one is the first of all.
        choices: Answer choices, empty where the template has none.
        gold: Index of the right choice; None where there are no choices or the target is not among them.
    """

    prompt: str
    fields: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int | None = None


@cache
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


class PromptTemplate:
    """One template: its instruction, and examples from rows."""

    def __init__(self, source: TemplateSource) -> None:
        """Compiles a template.

        Raises:
            TemplateProblem: If it cannot be used on any row.
        """
        self.source = source
        try:
            self._build(_parse(source.jinja), _parse(source.answer_choices) if source.answer_choices.strip() else None)
        except TemplateError as error:
            raise TemplateProblem(f"template syntax error: {error.message}") from None
        except RecursionError:
            raise TemplateProblem("template that is nested too deeply") from None

    def _build(self, tree: nodes.Template, choices: nodes.Template | None) -> None:
        if not holds_separator(tree):
            raise TemplateProblem(f"template without {SEPARATOR}")
        self.instruction = mask(tree, choices)
        """The paper's a: the prompt rendered without any row, each field as `[field]`."""
        if not self.instruction:
            raise TemplateProblem("template whose instruction is empty")
        about = survey(tree)
        about_choices = survey(choices) if choices else None
        if about.choices and choices is None:
            raise TemplateProblem("template that uses answer choices but has none")
        if about_choices and about_choices.choices:
            raise TemplateProblem("answer choices made from themselves")
        self.ranked = choices is not None
        choice_fields = about_choices.fields if about_choices else frozenset()
        self.fields = about.fields | choice_fields
        self._optional = about.optional - choice_fields
        self._deciding = about.deciding
        rewrite(tree, about, literal_choices=not choice_fields)
        self._prompt = _compile(tree)
        self._choices = None
        if choices is not None and about_choices is not None:
            rewrite(choices, about_choices, literal_choices=True, marks=False)
            self._choices = _compile(choices)

    @property
    def name(self) -> str:
        """The template's name."""
        return self.source.name

    def missing(self, columns: Collection[str]) -> list[str]:
        """Returns the fields that the template needs and that are not among `columns`, sorted."""
        return sorted(self.fields - self._optional - set(columns))

    def fill(self, row: Mapping[str, Any], row_id: str, seed: int = 0) -> Filled:
        """Fills in a row.

        Args:
            row: Its fields.
            row_id: Decides, with `seed`, what the `choice` filter takes.
            seed: Seed of the experiment.

        Raises:
            RowProblem: If the row cannot be used with this template.
            TemplateProblem: If the template does what none may.
        """
        self._check_label(row)
        try:
            context = {name: _protect(row[name]) for name in self.fields if name in row}
        except RecursionError:
            raise RowProblem("row that is nested too deeply") from None
        key = f"{seed}/{row_id}"
        choices: tuple[str, ...] = ()
        if self._choices is not None:
            protected = [text.strip() for text in _run(self._choices, context, RenderState(key)).split(SEPARATOR)]
            choices = tuple(map(_unprotect, protected))
            check_choices(choices)
            context["answer_choices"] = Choices(protected)
        state = RenderState(key)
        marked, targets = _split(_run(self._prompt, context, state))
        if not self.ranked and len(state.drawn) == 1:
            count, drawn = state.drawn[0]
            others = [index for index in range(count) if index != drawn][: MAX_TARGETS - 1]
            variants = (_split(_run(self._prompt, context, RenderState(key, index)))[1] for index in others)
            targets = [*targets, *(target for each in variants for target in each)]
        found = {choices.index(target) for target in targets if target in choices}
        if len(found) > 1:
            raise RowProblem("more than one target among the answer choices")
        prompt = _unprotect(remove_marks(_TOLD.sub("", marked) if TELL in marked else marked)).strip()
        if not prompt:
            raise RowProblem("empty prompt")
        gold = found.pop() if found else None
        return Filled(prompt, _filled_in(marked), tuple(dict.fromkeys(targets)), choices, gold)

    def _check_label(self, row: Mapping[str, Any]) -> None:
        for name in self._deciding:
            value = row.get(name, "")
            if value is None:
                raise RowProblem(f"empty (null) field {name!r} that decides the target")
            if self.ranked and name in row and (value == "" or (value == -1 and not isinstance(value, bool))):
                raise RowProblem(f"row without label ({name} is {value!r})")


def _parse(text: str) -> nodes.Template:
    if len(text) > MAX_SOURCE:
        raise TemplateProblem(f"template of more than {MAX_SOURCE:,} characters")
    tree = _environment().parse(text)
    check_constructs(tree)
    return tree


def _compile(tree: nodes.Template) -> Template:
    try:
        return _environment().from_string(tree)
    except (SyntaxError, MemoryError) as error:
        raise TemplateProblem(f"template syntax error: {error}") from None


def _run(template: Template, context: Mapping[str, Any], state: RenderState) -> str:
    pieces, length = [], 0
    try:
        for piece in template.root_render_func(template.new_context({**context, STATE: state})):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise LimitError(f"more than {MAX_CHARACTERS:,} characters")
    except SecurityError as error:
        raise TemplateProblem(f"template that reaches for Python internals: {error}") from None
    except UndefinedError as error:
        raise RowProblem(f"undefined field ({shortened(str(error.message))})") from None
    except LimitError as error:
        raise RowProblem(f"rendering stopped: {error}") from None
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise RowProblem(f"cannot be rendered ({type(error).__name__}: {shortened(str(error))})") from None
    return "".join(pieces)


def _split(text: str) -> tuple[str, list[str]]:
    """Returns the marked prompt and the targets."""
    prompt, separator, rest = text.partition(SEPARATOR)
    if not separator:
        raise RowProblem("rendered text without |||" if text.strip() else "row that the template leaves out")
    targets = [_unprotect(remove_marks(part)).strip() for part in rest.split(SEPARATOR)]
    if not all(targets):
        raise RowProblem("empty target")
    return prompt, targets


def _filled_in(marked: str) -> str:
    found = _MARKED.findall(marked.replace(FILL_END + FILL, ""))
    texts = (_unprotect(filled or told).strip() for filled, told in found)
    return "\n".join(dict.fromkeys(text for text in texts if text))


def check_choices(choices: Sequence[str]) -> None:
    """Raises `RowProblem` for answer choices that are empty or not distinct."""
    if not all(choices):
        raise RowProblem("empty answer choice")
    if len(set(choices)) < len(choices):
        raise RowProblem("duplicate answer choices")


def _protect(value: Any) -> Any:
    if isinstance(value, str):
        if SEPARATOR in value:
            value = value.replace(SEPARATOR, PROTECTED)
        return value if value.isascii() else remove_marks(value)
    if isinstance(value, list | tuple):
        return [_protect(each) for each in value]
    if isinstance(value, dict):
        return {_protect(key): _protect(each) for key, each in value.items()}
    return value


def _unprotect(text: str) -> str:
    return text.replace(PROTECTED, SEPARATOR)

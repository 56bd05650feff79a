"""A template's instruction: its prompt rendered without any row.

The syntax tree is evaluated with unknowns. A field becomes `[field]` and stays that through filters,
methods and arithmetic; an attribute of it `[field.attribute]`. `choice`, and an unknown index into something
known, give all the options, written `a / b`. Of a condition the first branch with any prompt is taken, of
a loop the body once. Everything else is computed, so literal answer choices come out as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

from tagi_lightning.data.p3.rewrite import SEPARATOR, TemplateProblem

MAX_OPTIONS = 32
"""Options of a `choice` that an instruction lists."""
MAX_STEPS = 50_000
MAX_CHARACTERS = 100_000

_REPEATED = re.compile(r"(\[[^\[\]]+\])\1+")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that depends on the row: the text it leaves, and its path where it is a field as it stands."""

    text: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """One of several values."""

    values: tuple[Any, ...]


def mask(tree: nodes.Template, choices: nodes.Template | None = None) -> str:
    """Returns the instruction of a template.

    Args:
        tree: The template as parsed.
        choices: Its answer choices as parsed.

    Raises:
        TemplateProblem: If that takes too many steps or gives too much text.
    """
    masker = _Masker()
    if choices is not None:
        parts = [part.strip() for part in masker.body(choices.body).split(SEPARATOR)]
        # A list that the row holds as a whole, such as {{choices.text | join("|||")}}.
        whole = len(parts) == 1 and bool(re.fullmatch(r"\[[^\[\]]+\]", parts[0]))
        masker.variables["answer_choices"] = Unknown(parts[0]) if whole else [_from_text(part) for part in parts]
    prompt = masker.body(tree.body).partition(SEPARATOR)[0]
    return _REPEATED.sub(r"\1", prompt).strip()


def _from_text(text: str) -> Any:
    return Unknown(text) if "[" in text else text


class _Masker:
    def __init__(self) -> None:
        self.variables: dict[str, Any] = {"loop": {"index": 1, "index0": 0, "first": True, "last": False}}
        self.steps = 0

    def step(self, size: int = 0) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS or size > MAX_CHARACTERS:
            raise TemplateProblem("instruction that takes too many steps or characters")

    # --- statements

    def body(self, body: Sequence[nodes.Node]) -> str:
        """Returns the text of statements."""
        text = ""
        for node in body:
            self.step(len(text))
            match node:
                case nodes.Output():
                    text += "".join(self.printed(child) for child in node.nodes)
                case nodes.If():
                    text += self.first_with_prompt([node.body, *([each] for each in node.elif_), node.else_])
                case nodes.For():
                    text += self.loop(node)
                case nodes.Assign():
                    self.assign(node.target, self.value(node.node))
        return text

    def printed(self, child: nodes.Expr) -> str:
        return child.data if isinstance(child, nodes.TemplateData) else self.text(self.value(child))

    def first_with_prompt(self, branches: Sequence[Sequence[nodes.Node]]) -> str:
        before = dict(self.variables)
        for branch in branches:
            text = self.body(branch)
            if text.partition(SEPARATOR)[0].strip():
                return text
            self.variables = dict(before)
        return ""

    def loop(self, node: nodes.For) -> str:
        before = dict(self.variables)
        items = self.value(node.iter)
        if isinstance(items, Unknown):
            self.assign(node.target, Unknown(items.text, items.path))
        else:
            self.assign(node.target, _options([each for group in _alternatives(items) for each in _items(group)]))
        text = self.body(node.body)
        self.variables = before
        return text

    def assign(self, target: nodes.Node, value: Any) -> None:
        if isinstance(target, nodes.Name):
            self.variables[target.name] = value
        elif isinstance(target, nodes.Tuple):
            for place, part in enumerate(target.items):
                self.assign(part, self.item(value, place))

    # --- expressions

    def value(self, node: nodes.Node) -> Any:
        """Returns what an expression is: a plain value, `Unknown` or `Options`."""
        self.step()
        match node:
            case nodes.Const():
                return node.value
            case nodes.Name():
                return self.variables.get(node.name, Unknown(f"[{node.name}]", node.name))
            case nodes.List() | nodes.Tuple():
                return [self.value(each) for each in node.items]
            case nodes.Dict():
                return {self.text(self.value(pair.key)): self.value(pair.value) for pair in node.items}
            case nodes.Getattr():
                return self.item(self.value(node.node), node.attr)
            case nodes.Getitem():
                return self.subscript(self.value(node.node), node.arg)
            case nodes.CondExpr():
                choices = [self.value(each) for each in (node.expr1, node.expr2) if each is not None]
                return next((each for each in choices if self.text(each).strip()), choices[0])
            case nodes.Filter():
                return self.filtered(node)
            case nodes.Call():
                return self.called(node)
            case nodes.Concat():
                return self.together([self.value(each) for each in node.nodes])
            case nodes.BinExpr():
                return self.binary(node)
            case nodes.UnaryExpr():
                value = self.value(node.node)
                return -value if isinstance(node, nodes.Neg) and isinstance(value, int | float) else value
            case nodes.Compare():
                return self.unknown([self.value(node.expr), *(self.value(each.expr) for each in node.ops)])
            case nodes.Test():
                return self.unknown([self.value(node.node)])  # type: ignore[arg-type]
        raise TemplateProblem(f"construct that templates may not use: {type(node).__name__}")

    def text(self, value: Any) -> str:
        """Returns a value as it stands in the instruction."""
        self.step()
        match value:
            case Unknown():
                return value.text
            case Options():
                return " / ".join(dict.fromkeys(self.text(each) for each in value.values))
            case None:
                return ""
            case list() | tuple() | range():
                return ", ".join(self.text(each) for each in value[:MAX_OPTIONS])
            case dict():
                return ", ".join(self.text(each) for each in value.values())
        self.step(len(str(value)))
        return str(value)

    def unknown(self, values: Sequence[Any]) -> Any:
        """Returns an unknown made from `values`, written as the unknown ones among them."""
        texts = dict.fromkeys(self.text(each) for each in values if isinstance(each, Unknown | Options))
        return Unknown(" ".join(texts) or self.text(values[0]))

    def together(self, values: Sequence[Any], by: str = "") -> Any:
        texts = [self.text(each) for each in values]
        self.step(sum(map(len, texts)) + len(by) * len(texts))
        joined = by.join(texts)
        return joined if all(isinstance(each, str | int | float) for each in values) else Unknown(joined)

    def each(self, value: Options, function: Callable[[Any], Any]) -> Any:
        return _options([function(each) for each in value.values])

    def item(self, value: Any, key: Any) -> Any:
        """Returns `value[key]`."""
        self.step()
        if isinstance(value, Options):
            return self.each(value, lambda each: self.item(each, key))
        if isinstance(value, Unknown):
            if not value.path or not isinstance(key, str):
                return value
            path = f"{value.path}.{key}"
            return Unknown(f"[{path}]", path)
        if isinstance(key, Options):
            return self.each(key, lambda each: self.item(value, each))
        if isinstance(key, Unknown):
            return _options(list(value.values()) if isinstance(value, dict) else _items(value))
        try:
            return value[str(key) if isinstance(value, dict) else key]
        except (TypeError, LookupError):
            return Unknown(self.text(key))

    def subscript(self, value: Any, arg: nodes.Node) -> Any:
        if not isinstance(arg, nodes.Slice):
            return self.item(value, self.value(arg))
        bounds = [None if each is None else self.value(each) for each in (arg.start, arg.stop, arg.step)]
        return self.sliced(value, bounds)

    def sliced(self, value: Any, bounds: Sequence[Any]) -> Any:
        if isinstance(value, Options):
            return self.each(value, lambda each: self.sliced(each, bounds))
        plain = all(isinstance(each, int | None) for each in bounds) and bounds[2] != 0
        return value[slice(*bounds)] if plain and isinstance(value, str | list) else value

    def filtered(self, node: nodes.Filter) -> Any:
        value = self.value(node.node)  # type: ignore[arg-type]
        return self.apply(node.name, value, [self.value(each) for each in node.args])

    def called(self, node: nodes.Call) -> Any:
        arguments = [self.value(each) for each in node.args]
        if isinstance(node.node, nodes.Getattr):
            value, name = self.value(node.node.node), node.node.attr
            if name == "join" and isinstance(value, str) and arguments:
                return self.apply("join", arguments[0], [value])
            return self.apply(name, value, arguments)
        if getattr(node.node, "name", "") == "range" and all(isinstance(each, int) for each in arguments):
            return list(range(*arguments)[:MAX_OPTIONS])
        return self.unknown(arguments) if arguments else Unknown("")

    def apply(self, name: str, value: Any, arguments: Sequence[Any]) -> Any:
        """Returns a filter's or method's result; what depends on the row stays as it is."""
        self.step()
        if name == "choice":
            return (
                value if isinstance(value, Unknown) else _options([i for v in _alternatives(value) for i in _items(v)])
            )
        if isinstance(value, Options):
            return self.each(value, lambda each: self.apply(name, each, arguments))
        if isinstance(value, Unknown):
            return value
        if name == "join":
            return self.together(_items(value), self.text(arguments[0]) if arguments else "")
        if name == "replace" and isinstance(value, str) and len(arguments) > 1:
            old, new = self.text(arguments[0]), self.text(arguments[1])
            self.step(len(value) + value.count(old) * len(new))
            changed = value.replace(old, new)
            return changed if isinstance(arguments[1], str) else Unknown(changed)
        plain = _PLAIN.get(name)
        try:
            return plain(value, *arguments) if plain else value
        except (TypeError, ValueError, LookupError, AttributeError):
            return self.unknown([*arguments, value])

    def binary(self, node: nodes.BinExpr) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node, nodes.And | nodes.Or):
            return left
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if isinstance(node, nodes.Add) and not numbers:
            if isinstance(left, list) and isinstance(right, list):
                self.step(len(left) + len(right))
                return left + right
            if isinstance(left, str) or isinstance(right, str):
                return self.together([left, right])
        if numbers and isinstance(node, nodes.Add | nodes.Sub | nodes.Mul) and max(abs(left), abs(right)) < 1 << 64:
            sign = {nodes.Add: left + right, nodes.Sub: left - right, nodes.Mul: left * right}
            return sign[type(node)]
        return self.unknown([left, right])


def _options(values: Sequence[Any]) -> Any:
    flat = [each for value in values for each in _alternatives(value)][:MAX_OPTIONS]
    return flat[0] if len(flat) == 1 else Options(tuple(flat))


def _alternatives(value: Any) -> Sequence[Any]:
    return value.values if isinstance(value, Options) else [value]


def _items(value: Any) -> list[Any]:
    """Returns the entries of a list, the keys of a mapping, or the value alone."""
    return list(value) if isinstance(value, list | tuple | dict | str) else [value]


_PLAIN: dict[str, Callable[..., Any]] = {
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "capitalize": lambda text: text.capitalize(),
    "title": lambda text: text.title(),
    "trim": lambda text, characters=None: text.strip(characters),
    "strip": lambda text, characters=None: text.strip(characters),
    "split": lambda text, separator=None: text.split(separator),
    "length": len,
    "count": len,
    "first": lambda items: items[0],
    "last": lambda items: items[-1],
    "int": int,
    "list": list,
    "index": lambda items, item: items.index(item),
}
"""Filters and methods that are computed on plain values; all others leave the value as it is."""

"""What a template's syntax tree says, and how it is rewritten before it is compiled.

The part before the ||| is the prompt, the part behind it the targets. A condition that holds the
||| (a guard) decides whether a row is an example at all; one within the prompt decides its wording.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from jinja2.visitor import NodeTransformer

from tagi_lightning.data.p3.limits import remove_marks

SEPARATOR = "|||"
"""Stands between a prompt and its targets, and between answer choices."""
PROVIDED = frozenset({"answer_choices", "range", "loop"})
"""Names of a template that are no fields."""

_CONSTRUCTS = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.CondExpr),
    *(nodes.Const, nodes.Name, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Call, nodes.Concat),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Neg, nodes.Pos),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
)
"""What a template may consist of: no macros, includes, blocks or calls of other templates."""


class TemplateProblem(Exception):
    """A template that cannot be used on any row; the message is the kind of problem."""


def check_constructs(tree: nodes.Template) -> None:
    """Raises `TemplateProblem` for what a template may not hold."""
    for node in tree.find_all(nodes.Node):
        if type(node) not in _CONSTRUCTS or (isinstance(node, nodes.For) and node.recursive):
            raise TemplateProblem(f"construct that templates may not use: {type(node).__name__}")
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise TemplateProblem(f"template that reaches for Python internals: {node.attr}")


def holds_separator(node: nodes.Node) -> bool:
    """Whether the ||| stands within `node`."""
    return any(
        SEPARATOR in str(getattr(each, "data", None) or getattr(each, "value", ""))
        for each in _with_self(node, (nodes.TemplateData, nodes.Const))
    )


def _with_self(node: nodes.Node, kinds: tuple[type[nodes.Node], ...]) -> Iterable[nodes.Node]:
    if isinstance(node, kinds):
        yield node
    yield from node.find_all(kinds)


def names_in(node: nodes.Node) -> list[str]:
    """Returns the names that `node` reads, in order of first use."""
    found = (each.name for each in _with_self(node, (nodes.Name,)) if each.ctx == "load")  # type: ignore[attr-defined]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Survey:
    """The fields of a template.

    Attributes:
        fields: All it reads.
        optional: Those it can do without: tested by `is defined`, given a default, or tested within the prompt.
        deciding: Those that its targets, or the condition around them, read.
        printed: Those that expressions printed in the prompt read.
        choices: Whether it reads the answer choices.
    """

    fields: frozenset[str]
    optional: frozenset[str]
    deciding: frozenset[str]
    printed: frozenset[str]
    choices: bool


def survey(tree: nodes.Template) -> Survey:
    """Returns what a template reads where."""
    undeclared = find_undeclared_variables(tree)
    fields = frozenset(undeclared - PROVIDED)
    optional: set[str] = set()
    deciding: set[str] = set()
    printed: set[str] = set()
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name):  # type: ignore[attr-defined]
            optional.add(node.node.name)  # type: ignore[attr-defined]
    _survey(tree.body, False, optional, deciding, printed)
    return Survey(fields, fields & optional, fields & deciding, fields & printed, "answer_choices" in undeclared)


def _survey(body: Iterable[nodes.Node], after: bool, optional: set[str], deciding: set[str], printed: set[str]) -> bool:
    """Adds to the sets; returns whether the ||| has been passed."""
    for node in body:
        if isinstance(node, nodes.If):
            outside = after or holds_separator(node)
            if outside:
                deciding.update(names_in(node.test))
            else:
                optional.update(each.name for each in _operands(node.test) if isinstance(each, nodes.Name))
            parts = (node.body, node.elif_, node.else_)
            passed = [_survey(part, after, optional, deciding, printed) for part in parts]
            after = any(passed)
        elif isinstance(node, nodes.For):
            if after or holds_separator(node):
                deciding.update(names_in(node.iter))
            after = _survey([*node.body, *node.else_], after, optional, deciding, printed)
        elif isinstance(node, nodes.Output):
            for child in node.nodes:
                (deciding if after else printed).update(names_in(child))
                after = after or holds_separator(child)
        elif after:
            deciding.update(names_in(node))
    return after


def _operands(test: nodes.Node) -> list[nodes.Node]:
    """Returns the operands whose truth a condition asks for: a and b in `a and not b`."""
    if isinstance(test, nodes.Not):
        return _operands(test.node)
    if isinstance(test, nodes.And | nodes.Or):
        return [*_operands(test.left), *_operands(test.right)]
    return [test]


class Rewriter(NodeTransformer):
    """Puts budget, bounds and marks into a template's tree.

    Loops are counted and built values bounded. What the prompt prints of a row is marked. So is what only a
    condition within the prompt reads, as it decides the wording; unless the targets read it, too, and it would
    give them away. `choice` among the targets is another filter than within the prompt, so that every target can
    be had.
    """

    def __init__(self, about: Survey, literal_choices: bool, marks: bool = True) -> None:
        """Takes what is known of the template.

        Args:
            about: Its fields.
            literal_choices: Whether its answer choices are the same for every row.
            marks: Whether to mark what is printed.
        """
        self.untold = about.deciding | about.printed
        self.marks = marks
        self.after = False
        self.from_row: dict[str, bool] = {"answer_choices": not literal_choices, "range": False, "loop": False}

    def depends_on_row(self, node: nodes.Node) -> bool:
        """Whether a field, or a variable made from one, stands in an expression."""
        return any(self.from_row.get(name, True) for name in names_in(node))

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        """Marks printed expressions of the prompt."""
        children: list[nodes.Expr] = []
        for child in node.nodes:
            if isinstance(child, nodes.TemplateData):
                child.data = remove_marks(child.data)
                children.append(child)
            else:
                mark = self.marks and not self.after and self.depends_on_row(child)
                new = self.visit(child)
                children.append(_filter(new, " fill") if mark else new)
            self.after = self.after or holds_separator(child)
        node.nodes = children
        return node

    def visit_If(self, node: nodes.If) -> list[nodes.Node]:
        """Rewrites a condition, preceded by marks of what it reads."""
        within = not self.after and not holds_separator(node)
        told: dict[str, None] = {}
        if within and self.marks:
            tests = [node.test, *(each.test for each in node.elif_)]
            names = (name for test in tests for name in names_in(test))
            told = dict.fromkeys(n for n in names if n not in self.from_row and n not in self.untold)
        self._condition(node, within)
        tells = [_filter(_filter(nodes.Name(name, "load"), " truth"), " tell") for name in told]
        return [nodes.Output(tells, lineno=node.lineno), node] if tells else [node]

    def _condition(self, node: nodes.If, within: bool) -> None:
        node.test = self._truth(node.test) if within else self.visit(node.test)
        before, passed = self.after, False
        node.body = self._body(node.body)
        passed, self.after = passed or self.after, before
        for branch in node.elif_:
            self._condition(branch, within)
            passed, self.after = passed or self.after, before
        node.else_ = self._body(node.else_)
        self.after = passed or self.after

    def _truth(self, test: Any) -> Any:
        if isinstance(test, nodes.Not):
            test.node = self._truth(test.node)
            return test
        if isinstance(test, nodes.And | nodes.Or):
            test.left, test.right = self._truth(test.left), self._truth(test.right)
            return test
        bare = isinstance(test, nodes.Name | nodes.Getattr | nodes.Getitem)
        new: nodes.Expr = self.visit(test)
        return _filter(new, " truth") if bare else new

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Counts the steps of a loop."""
        kept = dict(self.from_row)
        from_row = self.depends_on_row(node.iter)
        node.iter = _filter(self.visit(node.iter), " iterate")
        for name in _with_self(node.target, (nodes.Name,)):
            self.from_row[name.name] = from_row  # type: ignore[attr-defined]
        if node.test is not None:
            node.test = self.visit(node.test)
        node.body = self._body(node.body)
        self.from_row = kept
        node.else_ = self._body(node.else_)
        return node

    def _body(self, body: list[nodes.Node]) -> list[nodes.Node]:
        return [new for node in body for new in self.visit_list(node)]

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        """Keeps in mind whether a variable is made from the row."""
        from_row = self.depends_on_row(node.node)
        node.node = self.visit(node.node)
        for name in _with_self(node.target, (nodes.Name,)):
            self.from_row[name.name] = from_row  # type: ignore[attr-defined]
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        """Gives `choice` among the targets its own name."""
        if self.after and node.name == "choice":
            node.name = " target choice"
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Turns `a ~ b` into the bounded join."""
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Bounds what a literal list refers to; one of constants is as large as it is written."""
        constant = all(isinstance(each, nodes.List | nodes.Tuple | nodes.Const) for each in node.find_all(nodes.Node))
        return node if constant else _filter(self.generic_visit(node), " bounded")

    visit_Tuple = visit_Dict = visit_List


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def rewrite(tree: nodes.Template, about: Survey, literal_choices: bool, marks: bool = True) -> None:
    """Rewrites `tree` in place; see `Rewriter`."""
    new: nodes.Template = Rewriter(about, literal_choices, marks).visit(tree)
    if tree.environment is not None:
        new.set_environment(tree.environment)

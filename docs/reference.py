"""Writes the reference of commands and configuration from the parsers themselves, when the documentation is built."""

from __future__ import annotations

import inspect
import re
from argparse import Action
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LIGHTNING_VERBS = {
    "fit": "`--stage`, `--taskset`, `--size` and `--machine` by [name](../how-to/command-line.md#stages-without-make), "
    "`--config`, `--system NAME` or `FILE`, the [shared options](options.md), those of the [stage](stages.md) as "
    "`--model.init_args.NAME`, those of the [data](data.md) as `--data.init_args.NAME`, and Lightning's as "
    "`--trainer.NAME`.",
    "evaluate": "As `tagi fit`, with the stage [Evaluation](stages.md#evaluation).",
    "check": "Those of the `tagi fit` or `tagi evaluate` that it looks at.",
}
"""Verbs whose options are the configuration."""
FROM_README = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)


def pages() -> dict[str, str]:
    """Returns the generated pages, Markdown by path."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return {
        "reference/commands.md": commands_page(),
        "reference/options.md": options_page(),
        "reference/stages.md": stages_page(),
        "reference/data.md": data_page(),
    }


def commands_page() -> str:
    """Returns every verb with its options."""
    from tagi_lightning import cli
    from tagi_lightning.cli.completion import parser_of

    exits = inspect.getdoc(cli.main).partition("exit code: ")[2]  # type: ignore[union-attr]
    parts = [
        "# Commands",
        f"`tagi VERB --option VALUE`, or `--config FILE` with options in YAML. Exit codes: {exits} `make` calls these "
        "with what a task set, a size and a machine need; `make` alone lists its commands.",
    ]
    for verb, summary in cli.VERBS.items():
        parts.append(f"## tagi {verb}")
        if verb in LIGHTNING_VERBS:
            parts += [f"{summary[0].upper()}{summary[1:]}.", f"Options: {LIGHTNING_VERBS[verb]}"]
        else:
            parser = parser_of(verb)
            parts += [parser.description or summary, *words(parser._actions)]
            parts += [table(parser._actions, "--")] if any(map(is_option, parser._actions)) else []
    return page(parts)


def options_page() -> str:
    """Returns what stands at the top of every configuration of a stage."""
    parts = [
        "# Shared options",
        "What stands at the top of a configuration of `tagi fit` and `tagi evaluate`, said once for model and data. "
        "`--system` applies a file of `experiments/systems/`, named or given, after all configurations and before "
        "other options. "
        "`trainer` takes what Lightning's `Trainer` takes.",
    ]
    from tagi_lightning.cli.completion import parser_of

    actions = [a for a in parser_of("fit")._actions if a.dest.partition(".")[0] not in ("trainer", "model", "data")]
    return page(parts + list(groups(actions, "--", level=2)))


def stages_page() -> str:
    """Returns the options of every stage."""
    from tagi_lightning import stages
    from tagi_lightning.cli.fit import STAGES

    parts = [
        "# Stages",
        "`model.class_path` names the stage, `model.init_args` holds its options: `rank` of `tagi.lora` is "
        "`--model.init_args.tagi.lora.rank` on the command line. Defaults are those of the types; "
        "`experiments/` sets what a stage, a size and a task set change, and `RUN/<stage>/config.yaml` holds what a "
        "run had. `run` and `backbone` follow from the [shared options](options.md).",
    ]
    kinds = {getattr(kind, "stage_name", None): kind for kind in vars(stages).values()}
    for name in (*STAGES, "evaluate"):
        parts += class_parts(kinds[name], {"run", "backbone"})
    return page(parts)


def data_page() -> str:
    """Returns the options of every data module."""
    import data_modules

    parts = [
        "# Data",
        "`data.class_path` names the data module, `data.init_args` holds its options (`--data.init_args.NAME`); `make` "
        "picks the file of `experiments/data/` by `TASKSET`. "
        "`tokenizer` and `seed` follow from the [shared options](options.md).",
    ]
    kinds = [getattr(data_modules, name) for name in data_modules.__all__]
    for kind in (k for k in kinds if not inspect.isabstract(k)):
        parts += class_parts(kind, {"tokenizer", "seed"})
    return page(parts)


def class_parts(kind: type, linked: set[str]) -> list[str]:
    """Returns the section of a class of the configuration, without the options that are linked to others."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    actions = [action for action in parser._actions if action.dest.partition(".")[0] not in linked]
    said = inspect.getdoc(kind) or ""
    stage = getattr(kind, "stage_name", None)
    command = [f"`make {stage}`, `class_path: {kind.__name__}`."] if stage else [f"`class_path: {kind.__name__}`."]
    return [f"## {kind.__name__}", said, *command, *groups(actions, "", level=3)]


def groups(actions: Iterable[Action], prefix: str, level: int) -> Iterator[str]:
    """Yields one table for the plain options, then a heading and a table for every group of nested ones."""
    documented = sorted(filter(is_option, actions), key=lambda action: "." in action.dest)
    for name, some in groupby(documented, key=lambda action: action.dest.rpartition(".")[0]):
        if name:
            yield f"{'#' * level} {name}"
        yield table(some, prefix)


def is_option(action: Action) -> bool:
    """Returns whether an action holds a value of its own rather than help or a whole group."""
    return hasattr(action, "_typehint") and not action.dest.endswith(".help")


def words(actions: Iterable[Action]) -> list[str]:
    """Returns what stands without an option's name, as a list where there is any."""
    lines = [f"- `{action.dest.upper()}`: {cell(action.help or '')}" for action in actions if not action.option_strings]
    return ["\n".join(lines)] if lines else []


def table(actions: Iterable[Action], prefix: str) -> str:
    """Returns options as a Markdown table: whole names behind a prefix, without one the last part of each."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for action in filter(is_option, actions):
        name = prefix + action.dest if prefix else action.dest.rpartition(".")[2]
        lines.append(f"| `{name}` | `{option_type(action)}` | {default(action)} | {cell(action.help or '')} |")
    return "\n".join(lines)


def option_type(action: Action) -> str:
    """Returns the type of an option's value."""
    name = type_name(action._typehint)  # type: ignore[attr-defined]
    return f"list[{name}]" if action.nargs == "*" else name


def default(action: Action) -> str:
    """Returns an option's default as it would stand in YAML."""
    if action.default is None and "null" not in option_type(action):
        return "required"
    value = list(action.default) if isinstance(action.default, tuple) else action.default
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def type_name(kind: Any) -> str:
    """Returns a type in the words of a configuration: `int or null`, `def or def+2pos`, `list[str]`."""
    if kind in (None, type(None)):
        return "null"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(type_name, inner))
    if inner:
        return f"{origin.__name__}[{', '.join(map(type_name, inner))}]"
    return "..." if kind is Ellipsis else str(kind.__name__)


def cell(text: str) -> str:
    """Returns `text` as that of one table cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def page(parts: Iterable[str]) -> str:
    """Returns blocks of Markdown as one page."""
    return "\n\n".join(parts) + "\n"


def section(title: str) -> str:
    """Returns the first block under a heading of the README.

    Raises:
        ValueError: If the README has no such heading.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=\n\n|\Z)", readme, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"README.md has no section {title!r}")
    return found[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts blocks of the README where a page asks for them."""
    return FROM_README.sub(lambda found: section(found[1]), markdown)

"""`tagi completion`: what makes a shell complete verbs, options and files."""

from __future__ import annotations

import argparse
import importlib
from typing import Literal, get_args, get_origin

from tagi_lightning.cli.command import options_of
from tagi_lightning.cli.experiment_files import builtin_experiments

OWN_PARSERS = ("ls", "cp")
"""Verbs that need no more than argparse."""
STAGE_VERBS = ("fit", "evaluate", "check")
"""Verbs that take the names of experiment files."""


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a completion script, e.g. eval "$(tagi completion --shell bash)" in ~/.bashrc, or to a file made once.

    Args:
        shell: The shell it is for.
    """
    import shtab

    print(shtab.complete(everything(), shell))


def everything() -> argparse.ArgumentParser:
    """Returns one parser with all verbs, for a shell to complete."""
    import shtab

    from tagi_lightning.cli import VERBS
    from tagi_lightning.cli.stage_option import KINDS
    from tagi_lightning.reproduce.configurations import known_names

    top = argparse.ArgumentParser("tagi", description="Task adapters generated from instructions.")
    top.add_argument("--version", action="store_true")
    top.add_argument("--debug", action="store_true")
    verbs = top.add_subparsers()
    for verb, text in VERBS.items():
        options = verbs.add_parser(verb, help=text, add_help=False)
        for action in parser_of(verb)._actions:
            choices = choices_of(action)
            if action.option_strings:
                added = options.add_argument(*action.option_strings, dest=action.dest, choices=choices)
            else:
                added = options.add_argument(action.dest, choices=choices)
            if not choices:
                added.complete = shtab.FILE  # type: ignore[attr-defined]
        if verb in STAGE_VERBS:
            for option, kind in (KINDS | {"system": "systems"}).items():
                options.add_argument(f"--{option}", choices=known_names(builtin_experiments(), kind))
    return top


def choices_of(action: argparse.Action) -> list[str]:
    """Returns the only values an option takes; empty where there are others."""
    kind = getattr(action, "_typehint", None)
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Returns what reads a verb's options."""
    import jsonargparse

    # tagi check takes the options of the stage it checks
    module = importlib.import_module(f"tagi_lightning.cli.{'fit' if verb == 'check' else verb}")
    found: argparse.ArgumentParser = (
        module.parser() if verb in OWN_PARSERS else jsonargparse.capture_parser(module.main, [])
    )
    return found


main = options_of(completion)

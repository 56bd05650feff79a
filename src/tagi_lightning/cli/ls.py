"""`tagi ls`: the experiment files that come with the package, each with what it is."""

from __future__ import annotations

import argparse
import shutil
import sys

from tagi_lightning.cli.experiment_files import names, summary


def parser() -> argparse.ArgumentParser:
    """Returns what reads the options."""
    parser = argparse.ArgumentParser(
        prog="tagi ls", description="List the experiment files that come with the package.", allow_abbrev=False
    )
    parser.add_argument("kind", nargs="?", default="", help="data, stages, sizes, systems, tables or trainers; or all")
    return parser


def main(args: list[str]) -> int:
    """Runs `tagi ls`; returns the exit code."""
    found = names(parser().parse_args(args).kind)
    width = max(map(len, found))
    # a line of a terminal each; what reads a pipe gets all of it
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name in found:
        print(f"{name:<{width}}  {summary(name)}"[:columns].rstrip())
    return 0

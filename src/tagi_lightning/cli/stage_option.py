"""`tagi fit --stage NAME --taskset NAME ...`: the experiment files that make would give, by their names."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from tagi_lightning.cli.experiment_files import configurations_folder
from tagi_lightning.cli.system import take_option
from tagi_lightning.reproduce.configurations import check_choice, known_names, stage_files

KINDS = {"stage": "stages", "taskset": "data", "size": "sizes", "machine": "trainers"}
"""Options, and the folder of the experiment files that each names one of."""


DESCRIPTION = (
    "Names are those that tagi ls stages, ls data, ls sizes, ls trainers and ls systems tell, and stand for the files "
    "that make gives; files and options that are given besides win. Left out they are synthetic, tiny (base where "
    "tasks are not generated) and cpu; the data lie in data/TASKSET where --data_folder tells nothing else."
)


def usage(prog: str) -> str:
    """Returns the usage of a verb that runs a stage, in a line."""
    stage = "" if prog == "tagi evaluate" else "--stage NAME "
    names = f"[{stage}--taskset NAME --size NAME --machine NAME]"
    return f"{prog} {names} [--config FILE ...] [--system NAME|FILE] --run RUN [--any.option VALUE ...]"


def expand_stage(args: Sequence[str], stage: str | None = None) -> list[str]:
    """Replaces names of stage, task set, size and machine by `--config` with their files, in make's order.

    The files come first, so that every configuration and option that is given besides wins. Defaults are make's: the
    synthetic task set, tiny for generated tasks and base for others, the CPU, and data/TASKSET for the data.

    Args:
        args: The options of a verb; without any of the names they stay as they are, unless the verb has its stage and
            no configuration is given.
        stage: The stage where none is named; None where one must be.

    Raises:
        ValueError: If a name is unknown or lacks its value, or no stage is named; the message lists the choices.
    """
    rest, named = list(args), dict[str, str]()
    for option in KINDS:
        rest, values = take_option(rest, f"--{option}")
        named |= {option: values[-1]} if values else {}
    given = {"--config", "--help", "-h"}.intersection(word.partition("=")[0] for word in rest)
    if not named and (stage is None or given):
        return rest
    folder = configurations_folder()
    if stage is not None:
        named.setdefault("stage", stage)
    if "stage" not in named:
        known = ", ".join(known_names(folder, KINDS["stage"]))
        raise ValueError(f"--{next(iter(named))} needs --stage beside it; choose from {known}")
    taskset = named.setdefault("taskset", "synthetic")
    named.setdefault("size", "tiny" if taskset.endswith("synthetic") else "base")
    named.setdefault("machine", "cpu")
    for option, kind in KINDS.items():
        check_choice(folder, kind, option, named[option])
    files = stage_files(folder, named["stage"], taskset, named["size"], named["machine"])
    configurations = [yaml.safe_dump({"data_folder": f"data/{taskset}"}), *map(str, files)]
    return [*(word for value in configurations for word in ("--config", value)), *rest]

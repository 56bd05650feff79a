"""`tagi fit --system NAME|FILE`: the part of a system that belongs to the stage, as one more configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from tagi_lightning import stages
from tagi_lightning.cli.experiment_files import configurations_folder
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.reproduce.systems import load_system
from tagi_lightning.stages import Stage


def expand_system(args: Sequence[str]) -> list[str]:
    """Replaces `--system NAME` or `--system FILE` by `--config` with what the system changes of the stage.

    It comes after the configurations and before the first override, an option with a dotted name; what follows wins.

    Raises:
        ValueError: If no configuration names the stage, or the stage is not in the system's chain.
    """
    rest, systems = take_option(args, "--system")
    if not systems:
        return rest
    system, stage = load_system(system_file(systems[-1])), configured_stage(take_option(args, "--config")[1])
    if system.logits_teacher and stage == "distill" and not any("logits_teacher" in arg for arg in rest):
        raise ValueError(
            f"the logits teacher of {system.name} is the model of {system.logits_teacher}; train that first and give "
            "--model.init_args.logits_teacher=<its model folder>"
        )
    overrides = next((n for n, arg in enumerate(rest) if re.match(r"--\w+\.", arg)), len(rest))
    places = [n for n, arg in enumerate(rest) if arg == "--config" or arg.startswith("--config=")]
    last = max((n for n in places if n < overrides), default=places[-1])
    after = last + (2 if rest[last] == "--config" else 1)
    part = yaml.safe_dump(system.part(stage), sort_keys=False)
    return [*rest[:after], "--config", part, *rest[after:]]


def system_file(named: str) -> Path:
    """Returns a system's file: the one that is named, or the experiment file of that name."""
    is_name = Path(named).name == named and not named.endswith(".yaml") and not os.path.isfile(named)
    return configurations_folder() / "systems" / f"{named}.yaml" if is_name else Path(named)


def take_option(args: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Returns the arguments without an option, and its values, given as `--option value` or `--option=value`.

    Raises:
        ValueError: If the option stands without a value.
    """
    rest, values = [], []
    words = iter(args)
    for word in words:
        if word == option:
            if (value := next(words, None)) is None:
                raise ValueError(f"{option} needs a value")
            values.append(value)
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, values


def configured_stage(configs: Sequence[str]) -> str:
    """Returns the name of the stage that configuration files name, the last one winning.

    Raises:
        ValueError: If none does, or one is damaged.
    """
    known = {name: cls for name, cls in vars(stages).items() if isinstance(cls, type) and issubclass(cls, Stage)}
    found = None
    for path in (Path(config) for config in configs if "\n" not in config):
        model = read_mapping(path).get("model") if path.is_file() else None
        if isinstance(model, dict) and "class_path" in model:
            found = str(model["class_path"]).rpartition(".")[2]
    if found not in known:
        raise ValueError(
            "--system needs the stage's configuration: --config experiments/stages/<stage>.yaml, or --stage <stage>"
        )
    return known[found].stage_name

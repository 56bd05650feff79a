"""`tagi check`: tells all that is wrong with a configuration and its data before a run, and what the run takes."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from data_modules import InstructionDataModule
from tagi_lightning.cli.check_data import Sample, check_data
from tagi_lightning.cli.check_needs import Run, backbone_size, needs, weights_fit
from tagi_lightning.cli.check_options import Problems, build, read_sources
from tagi_lightning.cli.check_stage import check_kind, check_results, check_stage, check_strategy
from tagi_lightning.cli.doctor import hushed
from tagi_lightning.cli.errors import TOLD_ERRORS
from tagi_lightning.cli.evaluate import EvaluateCLI
from tagi_lightning.cli.fit import FitCLI
from tagi_lightning.cli.lightning_cli import plain
from tagi_lightning.cli.runs import RunFolderError
from tagi_lightning.cli.stage_option import expand_stage
from tagi_lightning.cli.system import configured_stage, expand_system, take_option
from tagi_lightning.doctor.machine import existing

NOTHING_ELSE = "nothing else could be looked at"


class Checked:
    """Builds what a command line names; what it says of run folder and trainer is kept for later."""

    prog = "tagi check"
    folder_problem: str | None = None
    trainer_problem: str | None = None

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        """Parses; an error is raised instead of ending the process."""
        parser.exit_on_error = False
        super().parse_arguments(parser, args)  # type: ignore[misc]

    def before_instantiate_classes(self) -> None:
        """Looks into the run folder."""
        try:
            super().before_instantiate_classes()  # type: ignore[misc]
        except RunFolderError as error:
            self.folder_problem = str(error)

    def find_backbone(self) -> None:
        """Leaves it to the loading of tokenizer and weights, which go on one without the other."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Builds the trainer; where this machine cannot, one for its processor stands in."""
        try:
            return super().instantiate_trainer(**kwargs)  # type: ignore[misc]
        except (TypeError, ImportError, *TOLD_ERRORS) as error:
            reason = str(error)
        options = self.config_init.trainer  # type: ignore[attr-defined]
        told = ", ".join(f"{name}={options[name]}" for name in ("accelerator", "devices", "strategy", "precision"))
        self.trainer_problem = f"the trainer cannot be built on this machine ({told}): {reason}"
        options.accelerator, options.devices, options.num_nodes, options.strategy = "cpu", 1, 1, "auto"
        return super().instantiate_trainer(**kwargs)  # type: ignore[misc]


class CheckedFit(Checked, FitCLI):
    """A stage that trains; one that is finished is looked at all the same."""

    nothing_to_do: str | None = None

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer."""
        self.nothing_to_do, self.skip = self.skip, None
        super().instantiate_classes()


class CheckedEvaluation(Checked, EvaluateCLI):
    """An evaluation."""


def construct(args: list[str]) -> CheckedFit | CheckedEvaluation:
    """Builds what a command line names, of the kind that its configurations say."""
    try:
        stage = configured_stage(take_option(args, "--config")[1])
    except ValueError:  # the parser tells it better
        stage = ""
    return CheckedEvaluation(args) if stage == "evaluate" else CheckedFit(args)


def told_of_folder(message: str, removed: Collection[str]) -> str | None:
    """Returns what is told of the run folder, without options that differ for being wrong here; None if none is left.

    Args:
        message: What `tagi fit` would say.
        removed: Options that were taken out.
    """
    lines = message.splitlines()
    wrong = [
        line for line in lines if line.startswith("  ") and line.strip().partition(":")[0].endswith(tuple(removed))
    ]
    kept = [line for line in lines if line not in wrong]
    if wrong and not any(line.startswith("  ") for line in kept):
        return None
    return "\n".join(kept)


def check(args: list[str], scratch: Path, problems: Problems) -> Iterator[str]:
    """Looks at everything; yields lines about what is well.

    Args:
        args: The options of `tagi fit` or `tagi evaluate`.
        scratch: A folder for what is tokenised.
        problems: Receives what is wrong.
    """
    with problems.collected():
        args = expand_stage(args)
    if problems:
        yield NOTHING_ELSE
        return
    with problems.collected():
        args = expand_system(args)
    sources = read_sources(args, problems)
    cli, removed = build(sources, construct, problems)
    if cli is None:
        yield NOTHING_ELSE
        return
    if cli.folder_problem and (text := told_of_folder(cli.folder_problem, removed)):
        problems.tell(text)
    stage, data = cli.model, cli.datamodule
    check_folder(stage.folder, problems)
    if not check_kind(stage, data, problems):
        return
    sample = check_data(data, scratch, problems)
    stage.trainer, cli.trainer.datamodule = cli.trainer, data  # type: ignore[attr-defined]
    if cli.trainer_problem:
        problems.tell(cli.trainer_problem)
        check_strategy(stage, cli.config.trainer.strategy, problems)
    yield from told_of(cli, sample)
    run = known(cli, sample) if sample is not None else None
    if run is None or weights_fit(run, problems):
        whole = check_stage(stage, data, run is not None, problems)
        if isinstance(cli, CheckedEvaluation) and whole and run is not None:
            check_results(cli, problems)
    if run is not None:
        yield from needs(run, problems)


def check_folder(folder: Path, problems: Problems) -> None:
    """Tells where a stage's folder cannot be written."""
    place = existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.tell(f"{place} cannot be written to; give another RUN")


def told_of(cli: CheckedFit | CheckedEvaluation, sample: Sample | None) -> Iterator[str]:
    """Yields what was found of run folder and data."""
    if isinstance(cli, CheckedFit):
        if cli.nothing_to_do:
            yield f"run: {cli.nothing_to_do}"
        elif cli.checkpoint:
            yield f"run: goes on from {cli.checkpoint}"
    if sample is not None:
        counts = ", ".join(f"{count} {name}" for name, count in sample.counts.items())
        yield f"data: {counts}"
        if sample.notes:
            yield sample.notes


def known(cli: CheckedFit | CheckedEvaluation, sample: Sample) -> Run:
    """Returns what the estimates need to know."""
    data: Any = cli.datamodule
    return Run(
        stage=cli.model,
        config=plain(cli.config, cli.parser),
        devices=cli.trainer.world_size,
        gpu=cli.trainer.strategy.root_device.type == "cuda",
        sample=sample,
        categories=len(data.categories) if isinstance(data, InstructionDataModule) else 1,
        vocabulary=len(data.tokenizer),
        size=backbone_size(cli.model),
    )


def main(args: list[str]) -> int:
    """Runs `tagi check`; returns 0 where nothing is wrong."""
    if any(arg.partition("=")[0] in ("-h", "--help", "--print_config") for arg in args):
        CheckedFit(args)  # prints its options and ends
    problems = Problems()
    with tempfile.TemporaryDirectory(prefix="tagi-check-") as scratch, hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in check(args, Path(scratch), problems):
            print(line, flush=True)
    for number, problem in enumerate(problems, 1):
        print(f"problem {number}: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "nothing is wrong")
    return int(bool(problems))

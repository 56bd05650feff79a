"""The LightningCLI all Lightning verbs share: one configuration type for stages, data and trainer."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import data_modules  # noqa: F401  (makes its classes known by bare name)
from tagi_lightning.backbones import SIZES, BackboneConfig
from tagi_lightning.backbones.loading import find_backbone
from tagi_lightning.backbones.pretrained import locate
from tagi_lightning.callbacks import (
    BestCheckpoint,
    DurableCheckpointIO,
    ExactResume,
    FiniteSteps,
    HyperParameters,
    InspectModel,
    LastCheckpoint,
    LineProgress,
    SampleTable,
    SharedBatches,
    StopAtBatch,
    Throughput,
)
from tagi_lightning.cli.errors import told_briefly, with_option
from tagi_lightning.cli.processes import watch
from tagi_lightning.cli.quiet import quiet
from tagi_lightning.cli.runs import environment
from tagi_lightning.cli.stage_option import DESCRIPTION, usage
from tagi_lightning.data.files import replace_text
from tagi_lightning.data.task import Setting
from tagi_lightning.data.tokenizer import TokenizerError, check_tokenizer
from tagi_lightning.options import flatten
from tagi_lightning.stages import Stage
from tagi_lightning.storage.run_layout import CONFIG_FILE, model_folder

# options of configuration classes are described under their fields
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration to RUN/<stage>/config.yaml."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes SaveConfigCallback's arguments."""
        super().__init__(*args, **(kwargs | {"overwrite": True, "save_to_log_dir": False}))

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the file, on rank zero."""
        assert isinstance(pl_module, Stage)
        replace_text(pl_module.folder / CONFIG_FILE, self.parser.dump(self.config, skip_none=False))


class TagiArgumentParser(LightningArgumentParser):
    """A parser whose errors say what is wrong without listing every option there is."""

    def print_usage(self, file: Any = None) -> None:
        """Prints one line."""
        print(f"usage: {self.usage}", file=file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends on wrong options; a tokenizer that no earlier stage left is told as other missing inputs are.

        Raises:
            TokenizerError: If `find_tokenizer` ended the parsing.
        """
        if ex is not None and find_tokenizer.__name__ in message:
            raise TokenizerError(str(ex.__cause__)) from ex.__cause__
        super().error(with_option(message) if self.exit_on_error else message, ex)


class TagiCLI(LightningCLI):
    """LightningCLI with `--run`, `--backbone` and `--tokenizer` said once for model and data."""

    prog = "tagi fit"

    def __init__(self, args: list[str], **kwargs: Any) -> None:
        """Parses `args` and builds model, data and trainer without running anything."""
        quiet()
        super().__init__(
            Stage,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=TagiArgumentParser,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "allow_abbrev": False,
                "prog": self.prog,
                "usage": usage(self.prog),
                "description": DESCRIPTION,
            },
            run=False,
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what model and data share."""
        parser.add_argument("--run", type=str, required=True, help="Run folder; each stage has its own folder in it.")
        parser.add_argument(
            "--backbone",
            type=BackboneConfig,
            default=BackboneConfig(),
            help="The frozen language model.",
        )
        parser.add_argument(
            "--tokenizer",
            type=str | None,
            default=None,
            help="Tokenizer folder or hub id; null takes the backbone's.",
        )
        parser.add_argument(
            "--data_folder", type=str, default="data", help="Data folder; configurations say ${data_folder}."
        )
        parser.add_argument(
            "--setting",
            type=Setting,
            default="def",
            help="What an instruction shows: the definition, or also two demonstrations.",
        )
        parser.add_argument(
            "--allow_missing", type=bool, default=False, help="Go on without absent task files, and say which."
        )
        parser.add_argument(
            "--corpora",
            type=str,
            nargs="*",
            default=[],
            help="Files or folders of plain text, for the stages that read it.",
        )
        parser.add_argument(
            "--inspect_every",
            type=NonNegativeInt | None,
            default=None,
            help="Steps between pictures of the hypernetwork in TensorBoard, beside the last step's; null for after "
            "validations, five minutes or more apart; 0 for none at all.",
        )
        parser.add_argument(
            "--max_skipped_steps",
            type=NonNegativeInt,
            default=0,
            help="Steps with a loss or gradient that is NaN or infinite to leave out before the run stops.",
        )
        parser.link_arguments("run", "model.init_args.run")
        parser.link_arguments("backbone", "model.init_args.backbone")
        parser.link_arguments(("tokenizer", "backbone", "run"), "data.init_args.tokenizer", compute_fn=find_tokenizer)
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_instantiate_classes(self) -> None:
        """Puts logs and checkpoints into the stage's folder."""
        config = self.config
        stage = stage_folder(config)
        trainer = config.trainer
        trainer.default_root_dir = str(stage)
        # order and shards are the data modules' own (design rule: order is a function of seed, epoch, position)
        trainer.use_distributed_sampler = False

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer."""
        self.find_backbone()
        with told_briefly():
            super().instantiate_classes()

    def find_backbone(self) -> None:
        """Looks whether a pretrained backbone and its tokenizer are there, before anything is read."""
        name = self.config.backbone.name
        if name not in SIZES:
            folder = find_backbone(name)
            if self.config.tokenizer is None:
                check_tokenizer(folder)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer with this project's callbacks."""
        stage = stage_folder(self.config)
        fast = bool(self.config.trainer.fast_dev_run)
        values = plain(self.config, self.parser)
        resume = ExactResume()
        extra: list[L.Callback] = [SharedBatches(), FiniteSteps(self.config.max_skipped_steps)]
        extra += [resume, StopAtBatch(resume)]
        if not fast and self.config.trainer.logger is not False:
            named = dict(flatten({key: values.get(key) for key in ("model", "data", "backbone", "seed_everything")}))
            inspect = InspectModel(self.config.inspect_every)
            extra += [LearningRateMonitor(), inspect, Throughput(), SampleTable(), HyperParameters(named)]
        if not fast and self.config.trainer.enable_checkpointing is not False:
            extra += self.checkpoints(stage / "checkpoints", resume, {"configuration": values, **environment()})
            kwargs["plugins"] = [*(self.config_init.trainer.plugins or []), DurableCheckpointIO()]
        if self.config.trainer.enable_progress_bar is None:
            extra.append(LineProgress.for_this_output())
        self.trainer_defaults["callbacks"] = extra
        if self.config.trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(stage, name="tensorboard", version="", default_hp_metric=False)
        if self.config.trainer.log_every_n_steps is None:
            kwargs["log_every_n_steps"] = self.interval(10, 50)  # Lightning's 50 leaves short runs without curves
        trainer = super().instantiate_trainer(**kwargs)
        watch(trainer)
        return trainer

    def interval(self, times: int, most: int) -> int:
        """Returns the steps between what happens so many times a run, and at least every `most` steps."""
        steps = self.config.trainer.max_steps
        return max(1, min(most, steps // times)) if steps and steps > 0 else min(most, 500)

    def checkpoints(self, folder: Path, resume: ExactResume, facts: dict[str, Any]) -> list[L.Callback]:
        """Returns what keeps the last state, to go on from, and the best one where tasks are held out to tell it.

        The last state is saved twenty times a run, and at least every 2,500 steps (the paper's interval).
        """
        last = LastCheckpoint(folder, self.interval(20, 2500), resume, facts)
        monitor = locate_stage(self.config).monitor
        if monitor is None or self.config.data.init_args.get("val_split", "none") == "none":
            return [last]
        # what is best is part of the last state
        return [BestCheckpoint(folder, monitor), last]


def stage_folder(config: Namespace) -> Path:
    """Returns RUN/<stage> of a parsed configuration."""
    return Path(config.run) / locate_stage(config).stage_name


def locate_stage(config: Namespace) -> type[Stage]:
    """Returns the stage's class that a parsed configuration names."""
    stage = pydoc.locate(config.model.class_path)
    assert isinstance(stage, type)
    assert issubclass(stage, Stage)
    return stage


def find_tokenizer(tokenizer: str | None, backbone: BackboneConfig | Namespace, run: str) -> str:
    """Returns the tokenizer that goes with the backbone where none is named.

    Raises:
        FileNotFoundError: If the backbone is yet to be fetched.
        TokenizerError: If it is trained from scratch, and none is named nor saved by an earlier stage.
    """
    if tokenizer:
        return tokenizer
    if backbone.name not in SIZES:
        return locate(backbone.name)
    trained = model_folder(Path(run), "pretrain-backbone")
    if not trained.is_dir():
        raise TokenizerError(
            f"backbone {backbone.name!r} is trained from scratch and has no tokenizer of its own; give one: "
            "TOKENIZER=<folder or hub id> (--tokenizer), or make pretrain-backbone first"
        )
    return str(trained)


def defaults_of(values: Mapping[str, Any], parser: LightningArgumentParser) -> dict[str, Any]:
    """Returns the value that each option has where nobody gives it, by dotted name.

    Args:
        values: A configuration in plain types; it says which classes have options.
        parser: Knows the options outside these classes.
    """
    found = dict(flatten(dumped(parser)))
    pending: list[tuple[str, Any]] = list(values.items())
    for name, value in pending:
        if not isinstance(value, Mapping):
            continue
        pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        if isinstance(value.get("class_path"), str) and isinstance(kind := pydoc.locate(value["class_path"]), type):
            own = ArgumentParser(exit_on_error=False)
            own.add_class_arguments(kind, "options")
            options = dumped(own).get("options") or {}
            found |= {f"{name}.init_args.{key}": default for key, default in flatten(options)}
    return found


def dumped(parser: ArgumentParser) -> dict[str, Any]:
    """Returns a parser's defaults in plain types."""
    loaded: dict[str, Any] = yaml.safe_load(
        parser.dump(parser.get_defaults(skip_validation=True), skip_none=False, skip_validation=True)
    )
    return loaded


def plain(config: Namespace, parser: LightningArgumentParser) -> dict[str, Any]:
    """Returns a configuration in plain types."""
    loaded: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False))
    return loaded

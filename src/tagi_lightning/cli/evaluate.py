"""`tagi evaluate`: decodes and scores systems on a task set, into RUN/evaluate/<system>/."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data_modules.evaluation import ControlInstructions, EvaluationData
from tagi_lightning.cli.compare import benchmark_lines, comparison_table, read_evaluations
from tagi_lightning.cli.errors import told_plainly
from tagi_lightning.cli.lightning_cli import TagiCLI, defaults_of, locate_stage, plain
from tagi_lightning.cli.passes import answer_by_data_sets, answer_by_members, answer_once
from tagi_lightning.cli.runs import RunFolderError, differences, environment
from tagi_lightning.cli.stage_option import expand_stage
from tagi_lightning.cli.system import expand_system
from tagi_lightning.costs.flops import token_formula
from tagi_lightning.data.files import file_digest
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.paraphrase import count_paraphrases
from tagi_lightning.data.report import shortened
from tagi_lightning.data.task import DataKind
from tagi_lightning.data.token_cache import tasks_digest
from tagi_lightning.evaluation.heuristics import copy_demonstration, copy_input
from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import Prediction, write_metrics, write_predictions
from tagi_lightning.evaluation.sources import GENERATED
from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS, measure_flops
from tagi_lightning.options import flatten
from tagi_lightning.stages.evaluate import Evaluation
from tagi_lightning.storage.run_layout import CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE
from tagi_lightning.storage.serialization import WEIGHTS

SAME = ("data.init_args.prompt", "backbone.instruction_layer")
"""Options that must be those of training: they decide what the hypernetwork reads."""
COMPARED = (*SAME, "data.init_args.setting", "backbone.dtype", "backbone.quantization")
"""Options whose difference between training and evaluation is told."""


class EvaluateCLI(TagiCLI):
    """Adds which evaluations to make again."""

    prog = "tagi evaluate"

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--overwrite`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace results that are already there.")

    def before_instantiate_classes(self) -> None:
        """Refuses a training stage."""
        stage = locate_stage(self.config)
        if not issubclass(stage, Evaluation):
            raise ValueError(f"{stage.stage_name} is a training stage; run it with tagi fit")
        super().before_instantiate_classes()


def check_systems(names: tuple[str, ...]) -> None:
    """Refuses unknown systems.

    Raises:
        ValueError: If a name is unknown; the message lists those that are allowed.
    """
    known = {**SYSTEMS, **HEURISTICS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown systems {', '.join(unknown)}; choose from {', '.join(known)}")


class Evaluator:
    """Evaluates the systems of one `tagi evaluate`."""

    def __init__(self, cli: EvaluateCLI) -> None:
        """Takes what the command line built."""
        self.cli = cli
        self.stage: Evaluation = cli.model
        self.data = cli.datamodule
        self.folder = self.stage.folder
        self.options = plain(cli.config, cli.parser)
        self._flops: dict[str, int] = {}
        self._data_digests: dict[tuple[bool, bool], str] = {}
        # loaders differ between systems, and Lightning keeps a data module's first one
        self.data.trainer = cli.trainer
        cli.trainer.datamodule = self.data  # type: ignore[attr-defined]
        self.stage.trainer = cli.trainer
        self.evaluation = EvaluationData(self.data)
        self.stage.instructions = ControlInstructions(self.evaluation)

    def run(self) -> None:
        """Evaluates every system that has no result yet, and prints the table of all of them."""
        self.data.prepare_data()
        self.data.setup("test")
        if not self.data.splits.test:
            raise ValueError(
                "there is no test task to evaluate on; a custom set needs several tasks, or rows with split"
            )
        self.check_training()
        for name in self.stage.systems:
            target = self.folder / name
            if (target / METRICS_FILE).is_file() and not self.cli.config.overwrite:
                self.check_current(name, target)
                print(f"evaluate: {name} is already in {target}; --overwrite=true makes it again", flush=True)
                continue
            print(f"evaluate: {name}", flush=True)
            rows, facts = self.heuristic(name) if name in HEURISTICS else self.decode(name)
            if not self.cli.trainer.is_global_zero:
                continue
            if self.partial:
                print(f"evaluate: {name} answered {len(rows)} instances; a limited evaluation is not kept", flush=True)
                continue
            facts |= {"system": name, "seed": self.cli.config.seed_everything, "data_digest": self.data_digest(name)}
            metrics = aggregate(rows) | facts
            target.mkdir(parents=True, exist_ok=True)
            write_predictions(target / PREDICTIONS_FILE, rows, overwrite=True)
            config = yaml.safe_dump(self.options, sort_keys=False)
            (target / CONFIG_FILE).write_text(config, encoding="utf-8")
            write_metrics(target / METRICS_FILE, metrics | environment(), overwrite=True)
        evaluations = read_evaluations(self.folder.parent) if self.cli.trainer.is_global_zero else {}
        if not evaluations:
            return
        print(comparison_table(evaluations))
        if lines := benchmark_lines(evaluations):
            print(f"\n{lines}")

    def check_training(self) -> None:
        """Compares the present options with those that the hypernetwork was trained with, where its run tells them.

        Raises:
            RunFolderError: If the hypernetwork would read something else than in training, or the record of that is
                damaged.
        """
        record = self.stage.weights.parent / CONFIG_FILE
        uses = any(SYSTEMS[name].adapter.generates for name in self.stage.systems if name in SYSTEMS)
        if not uses or not record.is_file():
            return
        advice = "remove it to evaluate without comparing"
        trained = dict(flatten(read_mapping(record, advice, RunFolderError)))
        present = dict(flatten(self.options))
        differing = [key for key in COMPARED if trained.get(key, present.get(key)) != present.get(key)]
        told = [f"{key} {shortened(repr(trained[key]))} there, {present.get(key)!r} here" for key in differing]
        if needed := [
            f"--{key}={'null' if trained[key] is None else shortened(str(trained[key]))}"
            for key in differing
            if key in SAME
        ]:
            raise RunFolderError(
                f"{record.parent} was trained on other prompts or states: {'; '.join(told)}; give {' '.join(needed)}"
            )
        if told:
            print(f"evaluate: {record.parent} was trained otherwise: {'; '.join(told)}", flush=True)

    def check_current(self, name: str, target: Path) -> None:
        """Refuses results that other options, data or weights, or another backbone gave.

        Raises:
            RunFolderError: If there is any difference, or what tells it is damaged; the message names it.
        """
        again = f"remove {target}, or --overwrite=true makes it again"
        old = read_mapping(target / CONFIG_FILE, again, RunFolderError)
        # of weights and teachers their digests count, and of a system that uses none nothing
        free = tuple(f"model.init_args.{name}" for name in ("systems", "flops", "weights", "teachers"))
        found = differences(old, self.options)
        if found:  # an option that was not there yet was at its default
            found = differences(old, self.options, defaults_of(self.options, self.cli.parser))
        found = [line for line in found if not line.startswith((*free, "trainer."))]
        metrics = read_mapping(target / METRICS_FILE, again, RunFolderError)
        if "data_digest" not in metrics:
            found.append("which tasks it read is not on record")
        elif metrics["data_digest"] != self.data_digest(name):
            found.append("the tasks have changed since")
        if name in SYSTEMS:
            self.stage.configure_model()
            if metrics.get("backbone_digest") != self.stage.checkpoint_backbone_digest():
                found.append("the backbone was trained on since")
            if metrics.get("weights_digest") not in (None, self.stage.model.digest()):
                found.append("the hypernetwork was trained on since")
            if metrics.get("teachers_digest", self.teachers_digest(name)) != self.teachers_digest(name):
                found.append("the teachers were trained on since")
        if found:
            reasons = "\n  ".join(found[:10])
            raise RunFolderError(f"{target} was made otherwise:\n  {reasons}\n{again}.")

    def data_digest(self, name: str) -> str:
        """Returns the digest of the tasks that a system reads."""
        kind: DataKind = SYSTEMS[name].data if name in SYSTEMS else "test"
        training = name in SYSTEMS and SYSTEMS[name].adapter.reads_training_tasks
        key = (kind == "held_out", training)
        if key not in self._data_digests:
            more = self.data.splits.train if training else ()
            self._data_digests[key] = tasks_digest([*self.evaluation.tasks(kind), *more])
        return self._data_digests[key]

    def teachers_digest(self, name: str) -> str | None:
        """Returns the digest of the teachers' weights where a system uses them."""
        return file_digest(self.stage.teachers / WEIGHTS) if SYSTEMS[name].adapter.uses_teachers else None

    @property
    def partial(self) -> bool:
        """Whether the trainer's options leave out part of the data."""
        trainer = self.cli.trainer
        return bool(trainer.fast_dev_run) or trainer.limit_test_batches != 1.0  # type: ignore[attr-defined]

    def heuristic(self, name: str) -> tuple[list[Prediction], dict[str, Any]]:
        """Returns the rows of a system without a model."""
        tasks = self.data.splits.test
        return (copy_input if name == "copy_input" else copy_demonstration)(tasks), {}

    def decode(self, name: str) -> tuple[list[Prediction], dict[str, Any]]:
        """Returns the rows of a system that runs the model, with its cost."""
        stage, spec = self.stage, SYSTEMS[name]
        stage.system = name
        if spec.data == "each_demonstration":
            answered = answer_by_members(self.cli.trainer, stage, self.evaluation)
        elif spec.data == "few_shot":
            answered = answer_by_data_sets(self.cli.trainer, stage, self.evaluation)
        else:
            answered = answer_once(self.cli.trainer, stage, self.evaluation.loader(spec.data))
        facts: dict[str, Any] = {
            "seconds": round(answered.seconds, 3),
            "backbone": stage.backbone.name,
            "backbone_digest": stage.checkpoint_backbone_digest(),
        }
        if spec.adapter.generates:
            facts |= {"weights": str(stage.weights), "weights_digest": stage.model.digest()}
        if spec.adapter.uses_teachers:
            facts |= {"teachers": str(stage.teachers), "teachers_digest": self.teachers_digest(name)}
        if spec.data == "paraphrased":
            facts["paraphrases"] = asdict(count_paraphrases(self.data.splits.test))
        facts |= spec.adapter.facts(stage.controls) | answered.facts
        if stage.flops and not self.partial:
            facts |= self.costs(name)
        return answered.rows, facts

    def costs(self, name: str) -> dict[str, Any]:
        """Returns a system's operations, also relative to the concatenated backbone, and what they leave out."""
        spec = SYSTEMS[name]
        reference = "teachers_backbone" if spec.data == "held_out" else "concatenated"
        facts: dict[str, Any] = {"flops": self.flops(name)}
        facts["relative_flops"] = round(facts["flops"] / self.flops(reference), 4)
        if spec.adapter is GENERATED and self.stage.model.config.reads == "input":
            facts["relative_flops_formula"] = round(self.formula(), 4)
        training = "training on each data set's demonstrations" if spec.data == "few_shot" else None
        if left_out := spec.adapter.once or training:
            facts["flops_leave_out"] = left_out
        return facts

    def flops(self, name: str) -> int:
        """Returns the operations of a system over its whole data, with outputs of the references' length."""
        if name not in self._flops:
            spec, stage = SYSTEMS[name], self.stage
            model = stage.model if spec.adapter.generates else stage.bare
            loaders = self.evaluation.passes(spec.data)
            for loader in loaders:
                loader.batch_sampler.take_whole()  # type: ignore[union-attr]
            self._flops[name] = sum(measure_flops(spec, model, loader, stage.controls) for loader in loaders)
        return self._flops[name]

    def formula(self) -> float:
        """Returns the paper's token-count formula on this data's own mean lengths."""
        instruction = inputs = examples = tasks = 0
        seen: set[str] = set()
        loader = self.evaluation.loader("test")
        loader.batch_sampler.take_whole()  # type: ignore[union-attr]
        for batch in loader:
            inputs += int(batch.input.mask.sum())
            examples += len(batch)
            for row, task in enumerate(batch.tasks):
                if task not in seen:
                    seen.add(task)
                    instruction += int(batch.instruction.mask[row].sum())
                    tasks += 1
        return token_formula(instruction / tasks, inputs / examples, max(1, round(examples / tasks)))


def main(args: list[str]) -> int:
    """Runs `tagi evaluate`; returns the exit code."""
    with told_plainly():
        cli = EvaluateCLI(expand_system(expand_stage(args, Evaluation.stage_name)))
        check_systems(cli.model.systems)
        Evaluator(cli).run()
    return 0

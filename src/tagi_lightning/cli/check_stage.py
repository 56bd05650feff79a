"""A stage put together as a run would, its checks called one after another instead of up to the first that fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
from lightning.pytorch.strategies import StrategyRegistry

from data_modules import BackboneDataModule, InstructionDataModule, PlainTextDataModule
from tagi_lightning.backbones import SIZES, build_backbone
from tagi_lightning.backbones.causal import CONTEXT_TOO_SHORT, CausalBackbone
from tagi_lightning.backbones.loading import refuse_float16, t5_config
from tagi_lightning.cli.check_options import NO_TOKENIZER, Problems
from tagi_lightning.cli.evaluate import EvaluateCLI, Evaluator, check_systems
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.evaluation.systems import SYSTEMS
from tagi_lightning.model import TagiConfig
from tagi_lightning.options import fits
from tagi_lightning.stages import Stage
from tagi_lightning.stages.align import Alignment, load_run_teachers
from tagi_lightning.stages.backbone import BackbonePretraining
from tagi_lightning.stages.distill import Distillation
from tagi_lightning.stages.evaluate import Evaluation
from tagi_lightning.stages.pretrain import HypernetworkPretraining
from tagi_lightning.stages.teachers import TeacherTraining
from tagi_lightning.storage.run_layout import METRICS_FILE, model_folder
from tagi_lightning.storage.serialization import CONFIG, read_folder

SWITCHES = {"init_from": "none", "teachers": "none", "logits_teacher": "backbone"}
"""What a stage reads of others, by option, and the value that goes on without."""


def check_kind(stage: Stage, data: L.LightningDataModule, problems: Problems) -> bool:
    """Tells where a stage is given data of another kind than it reads."""
    kind: type[L.LightningDataModule] = InstructionDataModule
    if isinstance(stage, BackbonePretraining):
        kind = BackboneDataModule
    elif isinstance(stage, HypernetworkPretraining):
        kind = PlainTextDataModule
    fits = isinstance(data, kind) and (kind is BackboneDataModule or not isinstance(data, BackboneDataModule))
    if not fits:
        problems.tell(
            f"{stage.stage_name} reads the data of {kind.__name__} or its kinds, not {type(data).__name__}: "
            "take the data configuration that goes with the stage (-text for pretrain, -backbone for pretrain-backbone)"
        )
    return fits


def check_strategy(stage: Stage, name: str, problems: Problems) -> None:
    """Asks a stage about a strategy with which no trainer can be built on this machine.

    Args:
        stage: The stage, with a trainer of another strategy.
        name: The strategy.
        problems: Receives what the stage does not go with.
    """
    if name in StrategyRegistry.available_strategies():
        trainer = stage.trainer
        with problems.collected():
            stage.trainer = SimpleNamespace(precision=trainer.precision, strategy=StrategyRegistry.get(name))  # type: ignore[assignment]
            stage.check_trainer()
        stage.trainer = trainer


def check_stage(stage: Stage, data: Any, readable: bool, problems: Problems) -> bool:
    """Puts a stage together, telling everything that does not fit.

    Args:
        stage: The stage, with its trainer and that with its data.
        data: The data module.
        readable: Whether the data could be read.
        problems: Receives what is wrong.

    Returns:
        Whether the stage is whole.
    """
    with problems.collected():
        stage.check_trainer()
    with problems.collected():
        stage.check_length()
    before = len(problems)
    if not readable and isinstance(data, InstructionDataModule):
        categories: tuple[str, ...] = ("unknown",)
        with problems.collected():
            categories = taught(stage)
        data.tasks = {"train": SimpleNamespace(tasks=[SimpleNamespace(category=name) for name in categories])}  # type: ignore[dict-item]
    if isinstance(stage, BackbonePretraining):
        if getattr(data, "tokenizer_name", None) != NO_TOKENIZER:
            with problems.collected():
                stage.build()
        return len(problems) == before
    if not check_backbone(stage, problems):
        check_inputs(stage, problems)
        return False
    if isinstance(stage, Evaluation):
        check_evaluated(stage, problems)
    else:
        check_build(stage, problems)
    if readable and isinstance(data, InstructionDataModule):
        check_batch(stage, data, problems)
    if readable and isinstance(stage.backbone, CausalBackbone):
        check_context(stage, stage.backbone, data, problems)
    return len(problems) == before


def teachers_folder(stage: Stage) -> Path:
    """Returns the folder of the teachers that a stage reads, its run's where it names none."""
    named = getattr(stage, "teachers", "auto")
    return model_folder(stage.run, "teachers", str(named))


def taught(stage: Stage) -> tuple[str, ...]:
    """Returns the categories of the teachers that a stage reads, which stand for those of data that are not there.

    Raises:
        ValueError: If the teachers' configuration is damaged.
    """
    config = teachers_folder(stage) / CONFIG
    if not config.is_file():
        return ("unknown",)
    names: Any = read_mapping(config, "make teachers").get("names")
    if not fits(names, list[str]):
        raise ValueError(f"{config} does not tell the teachers' names as it must; make them again: make teachers")
    return tuple(names)


def check_backbone(stage: Stage, problems: Problems) -> bool:
    """Loads the backbone, once for all that follows, and compares precision, prompts and tokenizer with it."""
    before = len(problems)
    with problems.collected():
        backbone = stage.load_run_backbone()
    there = len(problems) == before
    if not there:
        if stage.backbone_config.name not in SIZES:
            return False
        # what is to be trained from scratch is a T5 whose shape does not matter here
        backbone = build_backbone(t5_config("tiny"), stage.backbone_config.name)
    stage.backbone = backbone
    with problems.collected():
        refuse_float16(backbone, str(stage.trainer.precision).startswith("16"), "--trainer.precision=bf16-mixed")
    with problems.collected():
        stage.check_prompts()
    data: Any = stage.trainer.datamodule  # type: ignore[attr-defined]
    if there and data.tokenizer_name != NO_TOKENIZER:
        with problems.collected():
            stage.check_tokenizer()
    stage.load_run_backbone = lambda: backbone  # type: ignore[method-assign]
    return there


def check_inputs(stage: Any, problems: Problems) -> None:
    """Tells which results of earlier stages are not there, where without a backbone nothing can be loaded."""
    with problems.collected():
        stage.initial_folder()
    if isinstance(stage, Distillation) and not (stage.aligns or stage.follows_categories):
        return
    if isinstance(stage, (Alignment, Distillation)) and not teachers_folder(stage).is_dir():
        nothing: Any = None
        with problems.collected():
            load_run_teachers(stage.run, stage.teachers, nothing, nothing)
    if isinstance(stage, Evaluation):
        specs = [SYSTEMS[name] for name in stage.systems if name in SYSTEMS]
        for folder, kind, wanted in (
            (stage.weights, "tagi", any(spec.adapter.generates for spec in specs)),
            (stage.teachers, "teachers", any(spec.adapter.uses_teachers for spec in specs)),
        ):
            if wanted:
                with problems.collected():
                    read_folder(folder, kind, "make distill" if kind == "tagi" else "make teachers")


def check_build(stage: Any, problems: Problems) -> None:
    """Builds a stage, and again without each thing that it reads of other stages, until nothing is wrong any more."""
    left = {name: off for name, off in SWITCHES.items() if getattr(stage, name, off) != off}
    if stage.stage_name == "align":
        left.pop("teachers")  # nothing is left of align without them
    while True:
        with problems.collected():
            stage.build()
            return
        if not left:
            return
        name = next(iter(left))
        setattr(stage, name, left.pop(name))


def check_evaluated(stage: Evaluation, problems: Problems) -> None:
    """Loads what each kind of system reads, apart from the others."""
    with problems.collected():
        check_systems(stage.systems)
    wanted = [name for name in stage.systems if name in SYSTEMS]
    kinds = {
        "generates": [name for name in wanted if SYSTEMS[name].adapter.generates],
        "uses teachers": [name for name in wanted if SYSTEMS[name].adapter.uses_teachers],
        "all": wanted,
    }
    for names in kinds.values():
        stage.systems = tuple(names)
        with problems.collected():
            stage.build()


def check_batch(stage: Any, data: InstructionDataModule, problems: Problems) -> None:
    """Makes a batch of the sample, and tells where it lacks what the stage reads."""
    if isinstance(stage, Evaluation):
        if "test" not in data.tasks:
            problems.tell(f"{data.folder} gives no test task to evaluate on")
        return
    batch = next(iter(data.train_dataloader()))
    if batch.prompt is not None:
        return
    with problems.collected():
        if isinstance(stage, TeacherTraining):
            stage.losses(batch)
        elif isinstance(stage, Distillation) and stage.loss_config.lambda1:
            stage.prompts(batch)


def check_context(stage: Stage, backbone: CausalBackbone, data: Any, problems: Problems) -> None:
    """Tells where the longest example of the sample needs more positions than a decoder-only backbone has."""
    limit = int(backbone.model.config.max_position_embeddings)
    loader = data.test_dataloader() if isinstance(stage, Evaluation) else data.train_dataloader()
    needed = max((example_length(batch, has_memory(stage)) for batch in loader), default=0)
    needed += backbone.bos_id is not None
    if needed > limit:
        parts = "the longest of a few instances of each task"
        problems.tell(CONTEXT_TOO_SHORT.format(name=backbone.name, limit=limit, needed=needed, parts=parts))


def has_memory(stage: Any) -> bool:
    """Whether a stage's model reads inputs behind the keys and values of their instruction."""
    config = getattr(getattr(stage, "model", None), "config", None)
    return isinstance(config, TagiConfig) and config.decoder_memory


def example_length(batch: TaskBatch, memory: bool) -> int:
    """Returns the greatest number of tokens that a decoder-only backbone reads at once of a batch."""
    instruction = batch.instruction.mask.sum(1)
    if not len(batch.input):  # instructions alone
        return int(instruction.max())
    outputs = (batch.labels != IGNORE_INDEX).sum(1)
    lengths = [batch.input.mask.sum(1) + outputs + (instruction[batch.task_index] if memory else 0)]
    for prompt in (batch.prompt, batch.demonstrated_prompt):
        if prompt is not None:
            lengths.append(prompt.mask.sum(1) + outputs)
    return max(int(each.max()) for each in (instruction, *lengths))


def check_results(cli: EvaluateCLI, problems: Problems) -> None:
    """Compares an evaluation with the training of its model, and with the results that are already there."""
    evaluator = Evaluator(cli)
    with problems.collected():
        evaluator.check_training()
    for name in cli.model.systems:
        target = evaluator.folder / name
        if (target / METRICS_FILE).is_file() and not cli.config.overwrite:
            with problems.collected():
                evaluator.check_current(name, target)

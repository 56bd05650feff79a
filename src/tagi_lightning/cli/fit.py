"""`tagi fit`: trains one stage in its run folder, goes on with an interrupted one, skips a finished one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from tagi_lightning.cli.errors import told_plainly
from tagi_lightning.cli.lightning_cli import TagiCLI, defaults_of, locate_stage, plain, stage_folder
from tagi_lightning.cli.runs import (
    RunFolderError,
    RunRecord,
    check_options,
    locked,
    read_run,
)
from tagi_lightning.cli.stage_option import expand_stage
from tagi_lightning.cli.system import expand_system
from tagi_lightning.data.files import file_digest
from tagi_lightning.data.report import shortened
from tagi_lightning.preemption import Preempted, preemption
from tagi_lightning.stages.evaluate import Evaluation
from tagi_lightning.storage.checkpoint_files import LAST, PREVIOUS, find_checkpoint, read_checkpoint
from tagi_lightning.storage.run_layout import CONFIG_FILE, MODEL, STAGES, model_folder
from tagi_lightning.storage.serialization import WEIGHTS

tell = rank_zero_only(print)
"""Prints, on the first device alone."""


class FitCLI(TagiCLI):
    """Decides from the run folder whether to start, go on or skip before anything heavy is built."""

    skip: str | None = None
    checkpoint: tuple[Path, int] | None = None

    def __init__(self, args: list[str], held: ExitStack | None = None) -> None:
        """Parses `args`; `held` keeps the run folder's lock, None takes none."""
        self.held = held
        super().__init__(args)

    def before_instantiate_classes(self) -> None:
        """Looks into the run folder, and keeps other processes out of it where there is something to do."""
        if issubclass(locate_stage(self.config), Evaluation):
            raise ValueError("evaluate trains nothing; run it with tagi evaluate")
        super().before_instantiate_classes()
        if self.config.trainer.fast_dev_run:
            return
        self.skip = self.finished()
        if self.skip is None and self.held is not None and getattr(rank_zero_only, "rank", 0) == 0:
            self.held.enter_context(locked(stage_folder(self.config)))
            self.skip = self.finished()  # by whoever held the lock until now
        if self.skip is None:
            folder = stage_folder(self.config)
            self.checkpoint = find_checkpoint(folder / "checkpoints", folder.name, self.held is not None)

    def finished(self) -> str | None:
        """Compares the configuration with the one in the run folder; returns what to say of a finished stage.

        Raises:
            RunFolderError: If the folder holds another configuration, or results of other inputs.
        """
        folder = stage_folder(self.config)
        record = read_run(folder)
        has_model = (folder / MODEL).is_dir()
        saved = any((folder / "checkpoints" / name).exists() for name in (LAST, PREVIOUS))
        # a start that failed before its first checkpoint binds nobody
        if (saved or has_model) and record and (folder / CONFIG_FILE).is_file():
            present = plain(self.config, self.parser)
            check_options(folder, present, lambda: defaults_of(present, self.parser))
        enough = record.get("converged") or record.get("global_step", 0) >= self.config.trainer.max_steps
        if record.get("status") != "finished" or not enough or not has_model:
            return None
        inputs = inputs_of(self.config)
        if changed := [name for name, digest in record.get("inputs", {}).items() if inputs.get(name) != digest]:
            raise RunFolderError(
                f"{folder} was finished on other results of {shortened(', '.join(changed))} than are there now; "
                f"remove {folder} to train it again"
            )
        return f"{folder.name}: already finished in {folder} ({record.get('global_step', 0)} steps); nothing to do"

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer unless the stage is finished."""
        if self.skip is None:
            super().instantiate_classes()


def inputs_of(config: Namespace) -> dict[str, str]:
    """Returns the digests of what a stage reads of earlier ones, by stage: those of its run, or those it names."""
    folder = stage_folder(config)
    models = {stage: model_folder(folder.parent, stage) for stage in STAGES[: STAGES.index(folder.name)]}
    named = [config.backbone.name, *(config.model.init_args.get(option) for option in ("teachers", "init_from"))]
    for model in (Path(name) for name in named if name):
        if model.name == MODEL and model.parent.name in models:
            models[model.parent.name] = model
    return {stage: file_digest(model / WEIGHTS) for stage, model in models.items() if (model / WEIGHTS).is_file()}


def batch_size(data: Namespace) -> int | None:
    """Returns the examples (of align: the instructions) in a batch; None where batches of several kinds are mixed."""
    if data.get("tasks") is not None:
        return None
    if "tasks_per_batch" not in data:
        return int(data.batch_size)
    return int(data.tasks_per_batch) * (1 if data.instructions_only else int(data.instances_per_task))


def facts_of(cli: FitCLI) -> dict[str, Any]:
    """Returns what run.json says of a stage before it starts."""
    trainer, stage = cli.trainer, cli.model
    per_step = batch_size(cli.config.data.init_args)
    # a stage that goes on keeps what it began with, whatever stands in the run by now
    earlier = read_run(stage.folder) if cli.checkpoint else {}
    source = earlier["init_from"] if "init_from" in earlier else stage.initial_folder()
    return {
        "stage": stage.stage_name,
        "init_from": source and str(source),
        "seed": cli.config.seed_everything,
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "effective_batch": per_step and per_step * trainer.accumulate_grad_batches,
    }


def load_best(cli: FitCLI) -> None:
    """Puts the weights of the best validation back, where there was one; without validation the last ones stay."""
    for callback in cli.trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            checkpoint = read_checkpoint(Path(callback.best_model_path), cli.model.stage_name)
            cli.model.on_load_checkpoint(checkpoint)
            cli.model.load_state_dict(checkpoint["state_dict"], strict=False)
            tell(f"{cli.model.stage_name}: kept the best {callback.monitor}, {callback.best_model_score}", flush=True)


def train(cli: FitCLI) -> int:
    """Runs the stage and leaves its model; returns the exit code."""
    stage, trainer = cli.model, cli.trainer
    name, folder = stage.stage_name, stage.folder
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.fit(stage, datamodule=cli.datamodule, weights_only=True)
        return 0
    path, step = cli.checkpoint or (None, 0)
    if path:
        tell(f"{name}: going on from {path}, step {step} of {trainer.max_steps}", flush=True)
    else:
        start = stage.initial_folder()
        tell(f"{name}: starting in {folder}{f', from {start}' if start else ''}", flush=True)
    record = RunRecord(folder, facts_of(cli)) if trainer.is_global_zero else None
    status = "failed"
    try:
        trainer.fit(stage, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
        load_best(cli)
        if trainer.is_global_zero:
            stage.save(folder / MODEL)
        status = "finished"
    except Preempted:
        status = "interrupted"
        tell(f"{name}: interrupted after {trainer.global_step} steps; the same command goes on", flush=True)
        raise
    finally:
        preemption.deferred = False
        if record is not None:
            trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
            frozen = sum(p.numel() for p in stage.parameters() if not p.requires_grad)
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            counts = {"trained_parameters": trained, "frozen_parameters": frozen, "converged": stage.converged}
            facts = {"global_step": trainer.global_step, **counts, "metrics": metrics, "inputs": inputs_of(cli.config)}
            record.finish(status, facts)
    tell(f"{name}: finished after {trainer.global_step} steps; model in {folder / MODEL}", flush=True)
    return 0


def main(args: list[str]) -> int:
    """Runs `tagi fit`; returns the exit code."""
    with told_plainly(), ExitStack() as held:
        cli = FitCLI(expand_system(expand_stage(args)), held)
        if cli.skip:
            print(cli.skip)
            return 0
        return train(cli)

"""The jobs that tables need: what rows share is made once a seed, and every job follows those it reads from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits
from tagi_lightning.reproduce.configurations import examples_seen, merged, needs_teachers, nested, select, stage_files
from tagi_lightning.reproduce.jobs import Job
from tagi_lightning.reproduce.rows import PlannedRow, digest
from tagi_lightning.reproduce.systems import load_system, merge
from tagi_lightning.storage.run_layout import EVALUATE, METRICS_FILE, RUN_FILE, STAGES, SYSTEM_FILE, model_folder

BUILT_IN = ("tiny", "small", "base", "large", "xl", "xxl")
"""Backbones that are trained from scratch; any other name is a pretrained one."""

TAUGHT = ("teachers", "mean_teachers", "nearest_teacher")
"""Systems of `tagi evaluate` that read the teachers."""

BUDGET = (*STAGES, EVALUATE)
"""What a budget may name."""

DATA = "data"


@dataclass(frozen=True)
class Grid:
    """What all rows have in common.

    Attributes:
        taskset: Name of the data configuration.
        size: Name of the size.
        data: Data folder.
        trainer: Name of the trainer's configuration.
        runs: Folder of the runs.
        experiments: Folder of the configurations.
        backbone: A pretrained backbone instead of the size's own.
        tokenizer: Tokenizer folder or hub id, where the backbone brings none.
        corpora: Plain text for pretraining.
        allow_missing: Whether to go on without absent task files.
        budget: Steps by stage, and by `evaluate` the instances of a test task, where they are not those of the size.
    """

    taskset: str
    size: str
    data: Path
    trainer: str = "cpu"
    runs: Path = Path("runs")
    experiments: Path = Path("experiments")
    backbone: str | None = None
    tokenizer: str | None = None
    corpora: tuple[str, ...] = ()
    allow_missing: bool = False
    budget: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the budget.

        Raises:
            ValueError: If it names something else than a stage, or no positive number.
        """
        if wrong := [f"{name}: {count}" for name, count in self.budget.items() if name not in BUDGET or count < 1]:
            raise ValueError(f"wrong budget {', '.join(wrong)}; give positive numbers for {', '.join(BUDGET)}")

    def shared(self, seed: int) -> Path:
        """Returns the shared run of a seed."""
        return self.runs / f"{self.taskset}-{self.size}-s{seed}"

    def files(self, stage: str) -> tuple[Path, ...]:
        """Returns the configuration files of a stage."""
        return stage_files(self.experiments, stage, self.taskset, self.size, self.trainer)

    def options(self, stage: str, setting: str, seed: int) -> dict[str, Any]:
        """Returns what a stage is given on the command line, by dotted name."""
        options: dict[str, Any] = {"seed_everything": seed, "data_folder": str(self.data), "setting": setting}
        given = {
            "backbone.name": self.backbone,
            "tokenizer": self.tokenizer,
            "corpora": list(self.corpora),
            "allow_missing": self.allow_missing,
        }
        options |= {name: value for name, value in given.items() if value}
        if stage in self.budget:
            limited = "data.init_args.max_test_instances" if stage == "evaluate" else "trainer.max_steps"
            options[limited] = self.budget[stage]
        return options


class Planner:
    """Collects the jobs of one seed, each once."""

    def __init__(self, grid: Grid, seed: int) -> None:
        """Starts an empty plan."""
        self.grid, self.seed, self.shared = grid, seed, grid.shared(seed)
        self.jobs: dict[str, Job] = {}

    def add(self, rows: Sequence[PlannedRow]) -> None:
        """Adds the jobs of rows. Rows of one folder are evaluated together.

        Raises:
            ValueError: If two different rows have the same folder, or a row's configuration is none.
        """
        groups: dict[str, list[PlannedRow]] = {}
        for row in rows:
            groups.setdefault(row.slug, []).append(row)
        for slug, group in groups.items():
            if len({digest([asdict(row.system), row.setting]) for row in group}) > 1:
                raise ValueError(f"rows {', '.join(row.title for row in group)} differ and share the folder {slug}")
            try:
                self.evaluate(group, self.train(group[0]))
            except ValueError as error:
                raise ValueError(f"row {shortened(group[0].title)}: {error}") from error

    def train(self, row: PlannedRow) -> Job | None:
        """Adds a row's stages and what they read; returns the last one, None where nothing is trained."""
        last: Job | None = None
        for stage in row.system.chain:
            last = self.pretrain(row) if stage == "pretrain" else self.own(row, stage, last)
        return last

    def backbone(self, row: PlannedRow) -> list[Job]:
        """Adds the training of the backbone, where it is not a pretrained one."""
        options = self.grid.options("pretrain-backbone", row.setting, self.seed)
        name = select(self.config("pretrain-backbone", {}, options), "backbone.name")
        return [self.shared_stage("pretrain-backbone", {}, options, [])] if name in BUILT_IN else []

    def teachers(self, row: PlannedRow) -> Job:
        """Adds the categories' teachers, of the row's rank and categories."""
        options, needs = self.options("teachers", row)
        return self.shared_stage("teachers", row.system.part("teachers"), options, needs)

    def pretrain(self, row: PlannedRow) -> Job:
        """Adds the pretraining of a hypernetwork like the row's."""
        options, needs = self.options("pretrain", row)
        return self.shared_stage("pretrain", row.system.part("pretrain"), options, needs)

    def own(self, row: PlannedRow, stage: str, previous: Job | None) -> Job:
        """Adds a stage that only the row has, align or distill."""
        options, needs = self.options(stage, row)
        part = row.system.part(stage)
        inputs = {"init_from": previous, "teachers": None, "logits_teacher": None}
        if stage == "align" or needs_teachers(merge(self.config(stage, part, options), _logits_teacher(row))):
            inputs["teachers"] = self.teachers(row)
        if stage == "distill" and row.system.logits_teacher:
            inputs["logits_teacher"] = self.logits_teacher(row)
        for name, job in inputs.items():
            if job or name != "logits_teacher":
                options[f"model.init_args.{name}"] = model_of(job) if job else "none"
        needs += [job for job in inputs.values() if job]
        run = self.shared / "systems" / row.slug
        return self.fit(stage, run, part, options, needs, row.slug)

    def logits_teacher(self, row: PlannedRow) -> Job | None:
        """Adds the training of the system that is a row's logits teacher.

        Raises:
            ValueError: If it is none; the message names the row's system.
        """
        path = self.grid.experiments / "systems" / f"{row.system.logits_teacher}.yaml"
        try:
            teacher = load_system(path)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"the logits_teacher of system {row.system.name}: {error}") from error
        return self.train(PlannedRow(path.stem, teacher, "tagi", row.setting))

    def options(self, stage: str, row: PlannedRow) -> tuple[dict[str, Any], list[Job]]:
        """Returns what a stage after the backbone is given, and the jobs behind it."""
        options, needs = self.grid.options(stage, row.setting, self.seed), self.backbone(row)
        if needs:
            options["backbone.name"] = model_of(needs[0])
        return options, needs

    def config(self, stage: str, part: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the merged configuration of a stage."""
        return merge(merge(merged(self.grid.files(stage)), part), nested(options))

    def shared_stage(self, stage: str, part: Mapping[str, Any], options: Mapping[str, Any], needs: list[Job]) -> Job:
        """Adds a stage that all rows with the same configuration of it share.

        As size and task set configure it, backbone and teachers lie in the shared run itself, where `make` has them;
        anything else lies in SHARED/<stage>/<digest of its configuration>.
        """
        key = digest(self.config(stage, part, options))
        plain = digest(self.config(stage, {}, {**options, "setting": "def"}))
        run = self.shared if stage != "pretrain" and key == plain else self.shared / stage / key
        if run == self.shared and needs:  # it has this backbone itself, and `make teachers` does not name it
            options = {name: value for name, value in options.items() if name != "backbone.name"}
        return self.fit(stage, run, part, options, needs, "shared")

    def fit(
        self, stage: str, run: Path, part: Mapping[str, Any], options: Mapping[str, Any], needs: list[Job], system: str
    ) -> Job:
        """Adds one `tagi fit`."""
        config = self.config(stage, part, options)
        changes = {run / f"{stage}.yaml": yaml.safe_dump(dict(part), sort_keys=False)} if part else {}
        configs = (*self.grid.files(stage), *changes)
        job = Job(
            name=f"{run.relative_to(self.grid.runs) / stage}",
            kind=stage,
            run=run,
            command=command("fit", configs, {"run": str(run), **options}),
            digest=digest(config),
            needs=tuple(need.name for need in needs),
            results=(model_folder(run, stage),),
            files=changes,
            config=config,
            system=system,
        )
        return self.jobs.setdefault(job.name, job)

    def evaluate(self, rows: Sequence[PlannedRow], trained: Job | None) -> Job:
        """Adds one `tagi evaluate` for all that is evaluated of a row's folder."""
        row, systems = rows[0], list(dict.fromkeys(row.evaluate for row in rows))
        run = self.shared / "systems" / row.slug
        options, needs = self.options("evaluate", row)
        part = row.system.part("evaluate")
        teachers = self.teachers(row) if set(systems) & set(TAUGHT) else None
        options["model.init_args.teachers"] = model_of(teachers) if teachers else "none"
        needs += [job for job in (trained, teachers) if job]
        config = self.config("evaluate", part, options)
        files = {run / "evaluate.yaml": yaml.safe_dump(part, sort_keys=False)} if part else {}
        configs = (*self.grid.files("evaluate"), *files)
        asked = {"run": str(run), **options, "model.init_args.systems": f"[{', '.join(systems)}]"}
        files[run / SYSTEM_FILE] = yaml.safe_dump(self.describe(row, trained), sort_keys=False, allow_unicode=True)
        job = Job(
            name=f"{run.relative_to(self.grid.runs) / 'evaluate'}",
            kind="evaluate",
            run=run,
            command=command("evaluate", configs, asked),
            digest=digest(config),
            needs=tuple(need.name for need in needs),
            results=tuple(run / EVALUATE / name / METRICS_FILE for name in systems),
            files=files,
            config=config,
            system=row.slug,
        )
        self.jobs[job.name] = job
        return job

    def describe(self, row: PlannedRow, trained: Job | None) -> dict[str, Any]:
        """Returns what system.yaml says of a row's folder."""
        system, config = row.system, trained.config if trained else {}
        inputs = {
            name: select(config, f"model.init_args.{name}") for name in ("teachers", "init_from", "logits_teacher")
        }
        options, _ = self.options("evaluate", row)
        return {
            "name": system.name,
            "title": system.title,
            "setting": row.setting,
            "overrides": dict(row.overrides),
            "taskset": self.grid.taskset,
            "size": self.grid.size,
            "seed": self.seed,
            "chain": list(system.chain),
            "examples": examples_seen(config) if trained else 0,
            "inputs": {"backbone": options.get("backbone.name"), **inputs},
        }


def _logits_teacher(row: PlannedRow) -> dict[str, Any]:
    return nested({"model.init_args.logits_teacher": row.system.logits_teacher}) if row.system.logits_teacher else {}


def model_of(job: Job) -> str:
    """Returns the model folder that a stage leaves."""
    return str(job.results[0])


def command(verb: str, configs: Sequence[Path], options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the words after `tagi`."""
    words = [verb, *(word for path in configs for word in ("--config", str(path)))]
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return tuple(words)


def data_job(grid: Grid) -> Job | None:
    """Returns what writes the generated task set, where it is not there."""
    made = grid.data / "synthetic.json"
    if grid.taskset not in ("synthetic", "p3-synthetic") or made.is_file():
        return None
    words = ("data", "--taskset", grid.taskset, "--folder", str(grid.data))
    return Job(DATA, DATA, grid.runs, words, digest(words), results=(made,))


def plan(grid: Grid, rows: Sequence[PlannedRow], seeds: Sequence[int]) -> list[Job]:
    """Returns the jobs of all rows and seeds, each after those it needs."""
    data = data_job(grid)
    jobs = [data] if data else []
    for seed in seeds:
        planner = Planner(grid, seed)
        planner.add(rows)
        jobs += [job if job.needs or not data else replace(job, needs=(DATA,)) for job in planner.jobs.values()]
    return jobs


def check_steps(jobs: Sequence[Job]) -> None:
    """Refuses runs that were trained for longer than they are to be now.

    Raises:
        ValueError: If there is one, or its record is damaged; the message names it.
    """
    for job in jobs:
        file = job.run / job.kind / RUN_FILE
        if job.kind not in BUDGET[:-1] or not file.is_file():
            continue
        steps = read_mapping(file, f"remove {file.parent}, or give another --runs").get("global_step", 0)
        if not fits(steps, int):
            raise ValueError(f"{file} is damaged (global_step {steps!r}); remove {file.parent}, or give another --runs")
        if job.steps is not None and steps > job.steps:
            raise ValueError(
                f"{file.parent} was trained for {steps} steps, and the budget says {job.steps}: give "
                "another --runs, the same budget, or remove that folder"
            )

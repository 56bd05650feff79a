from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import ROOT, STAGES, command, record_of, tagi, tagi_commands, write_p3_set, write_task_set

from tagi_lightning.cli.fit import FitCLI
from tagi_lightning.cli.lightning_cli import TagiCLI
from tagi_lightning.data.synthetic_p3 import SyntheticP3Config, write_synthetic_p3
from tagi_lightning.options import flatten
from tagi_lightning.report.tables import read_table
from tagi_lightning.reproduce.configurations import merged, needs_teachers, select, stage_files
from tagi_lightning.reproduce.plan import Grid, plan
from tagi_lightning.reproduce.rows import digest, planned_rows, table_names
from tagi_lightning.reproduce.systems import merge

EXPERIMENTS = ROOT / "experiments"
SOURCES = ("-text", "-backbone")
TASKSETS = sorted(path.stem for path in (EXPERIMENTS / "data").glob("*.yaml") if not path.stem.endswith(SOURCES))
ALL_STAGES = sorted(path.stem for path in (EXPERIMENTS / "stages").glob("*.yaml"))
SIZES = sorted(path.stem for path in (EXPERIMENTS / "sizes").glob("*.yaml"))
TRAINERS = sorted(path.stem for path in (EXPERIMENTS / "trainers").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A task set in the official schema, with text and a tokenizer: synthetic, sni and, without its lists, custom."""
    folder = tmp_path_factory.mktemp("tasks") / "data"
    write_task_set(folder)
    write_p3_set(folder.parent)
    small = SyntheticP3Config(train_rows=14, shot_rows=6, test_rows=2, documents_per_template=1)
    write_synthetic_p3(folder.with_name("p3-synthetic"), small)
    return folder


def variables(taskset, data):
    if taskset.endswith("synthetic"):
        return {"TASKSET": taskset}
    return {"TASKSET": taskset, "TOKENIZER": data / "tokenizer", "CORPORA": data / "corpus"}


def options(taskset, stage, data):
    """Returns what makes a stage small: a cache of its own, few instances."""
    if taskset.endswith("synthetic"):
        return []
    small = [f"--data.init_args.cache_dir={data / '.cache'}"] if stage in ("pretrain", "pretrain-backbone") else []
    if taskset == "p3" and stage != "pretrain":
        tasks = "data.init_args.tasks" if stage == "pretrain-backbone" else "data"
        small += [f"--{tasks}.init_args.allow_missing=true", f"--{tasks}.init_args.subset=[glue_mrpc,paws]"]
    return small


def stage_command(taskset, stage, run, data, *more):
    own = {"custom": data / "tasks", "p3": data.with_name("p3"), "p3-synthetic": data.with_name("p3-synthetic")}
    folder = own.get(taskset, data)
    arguments = command(stage, run, folder, **variables(taskset, data), SIZE="tiny")
    if taskset != "synthetic":  # the generated set's own options
        arguments = [word for word in arguments if not word.startswith("--config=")]
    return [*arguments, *options(taskset, stage, data), *more]


@pytest.mark.slow
@pytest.mark.parametrize("taskset", TASKSETS)
def test_every_stage_of_a_task_set_runs_at_tiny_size(taskset, data, tmp_path):
    run = tmp_path / "run"
    for stage in STAGES:
        assert tagi(stage_command(taskset, stage, run, data, "--trainer.fast_dev_run=true")) == 0, stage
        assert not (run / stage).exists()
        assert tagi(stage_command(taskset, stage, run, data, "--trainer.max_steps=1")) == 0, stage
        assert record_of(run, stage)["status"] == "finished"
    # training leaves some instances for the teachers to be scored on
    trained = "max_examples_per_template" if taskset.startswith("p3") else "max_train_instances"
    few = [f"--data.init_args.{name}=1" for name in (trained, "max_test_instances")]
    few.append("--model.init_args.generation.max_new_tokens=4")
    assert tagi(stage_command(taskset, "evaluate", run, data, *few)) == 0
    evaluated = {path.parent.name for path in (run / "evaluate").glob("*/metrics.json")}
    assert {"no_instruction", "wrong_instruction", "concatenated", "tagi"} <= evaluated


class Parsed(Exception):
    """Raised with the configuration, in place of building anything from it."""


def parse(monkeypatch, arguments):
    """Parses a command as `tagi` does and returns its configuration."""

    def stop(cli):
        raise Parsed(cli.config)

    monkeypatch.setattr(TagiCLI, "instantiate_classes", stop)
    monkeypatch.setattr(FitCLI, "instantiate_classes", stop)
    with pytest.raises(Parsed) as parsed:
        tagi(arguments)
    return parsed.value.args[0]


@pytest.mark.parametrize("stage", ALL_STAGES)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_parses_with_every_stage(monkeypatch, tmp_path, size, stage):
    [arguments] = tagi_commands(stage, RUN=tmp_path, SIZE=size, TASKSET="sni", TOKENIZER="t", CORPORA="c")
    config = parse(monkeypatch, arguments)
    own = ("tiny", "smollm2-135m")
    assert config.backbone.name == (size if size in own else f"google/t5-{size}-lm-adapt")


@pytest.mark.slow
@pytest.mark.parametrize("taskset", ["synthetic", "sni", "p3"])
def test_every_row_of_every_table_parses(monkeypatch, tmp_path, taskset):
    monkeypatch.chdir(ROOT)
    tables = [read_table(name, EXPERIMENTS, taskset) for name in table_names(taskset, EXPERIMENTS)]
    rows = [row for table in tables for row in planned_rows(table, table.settings[0], EXPERIMENTS)]
    grid = Grid(taskset, "tiny", tmp_path / "data", runs=tmp_path / "runs", experiments=EXPERIMENTS)
    grid = grid if taskset == "synthetic" else replace(grid, backbone="some/t5")
    jobs = [job for job in plan(grid, rows, [0]) if job.command[0] == "fit"]
    for job in {digest([job.kind, *job.files.values()]): job for job in jobs if job.files}.values():
        job.prepare()
        config = parse(monkeypatch, job.command)
        [part] = job.files.values()
        asked = dict(flatten(yaml.safe_load(part)))
        if config.get("model.init_args.logits_teacher") != "category":  # another system's, which a row may name
            asked.pop("model.init_args.logits_teacher", None)
        for name in [name for name, value in asked.items() if value in ("auto", "pretrain", "align")]:
            stage = asked.pop(name)  # the run's own, whose path the job's command gives
            assert Path(config[name]).name == "model", (job.name, name)
            assert stage in ("auto", Path(config[name]).parent.name), (job.name, name)
        assert {name: config[name] for name in asked} == asked, job.name


@pytest.mark.parametrize("size", SIZES)
def test_who_is_taught_by_the_prompt_is_given_it_whatever_the_size_does_itself(size):
    """A size may train by L_pred alone; the paper's losses then need more than their weights."""
    taught = 0
    tables = [read_table(name, EXPERIMENTS, "sni") for name in ("sni", "ablation")]
    for row in [row for table in tables for row in planned_rows(table, table.settings[0], EXPERIMENTS)]:
        if "distill" not in row.system.chain:
            continue
        config = merge(merged(stage_files(EXPERIMENTS, "distill", "sni", size, "cpu")), row.system.part("distill"))
        if select(config, "model.init_args.loss.lambda1", 5.0):
            assert select(config, "data.init_args.with_prompt"), row.title
        if row.system.name == "tagi-paper":
            taught += needs_teachers(config)
            named = row.system.part("distill").get("model", {}).get("init_args", {}).get("logits_teacher")
            assert select(config, "model.init_args.logits_teacher") == named, row.title
            assert named in ("category", "backbone"), row.title
    assert taught > 20


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_parses(monkeypatch, tmp_path, trainer):
    [arguments] = tagi_commands("distill", RUN=tmp_path, SIZE="base", TASKSET="sni", TRAINER=trainer)
    config = parse(monkeypatch, arguments)
    assert config.trainer.precision in ("32-true", "bf16-mixed")
    assert config.trainer.accelerator == ("cpu" if trainer.startswith("cpu") else "gpu")


def test_the_pretrained_decoder_reads_generated_tasks_by_its_own_tokenizer(monkeypatch, tmp_path, data):
    backbone = data / "tokenizer"  # stands for the fetched model, which is not here
    for stage in ("distill", "evaluate"):
        [arguments] = tagi_commands(stage, RUN=tmp_path, SIZE="smollm2-135m", BACKBONE=backbone)
        config = parse(monkeypatch, arguments)
        assert config.tokenizer is None
        assert config.data.init_args.tokenizer == str(backbone)
        generation = config.model.init_args.generation
        assert (generation.max_new_tokens, generation.stop_at_newline) == (8, True)


def test_every_file_is_part_of_some_command():
    used = set()
    for taskset in TASKSETS:
        for size in SIZES:
            for stage in ALL_STAGES:
                [arguments] = tagi_commands(stage, TASKSET=taskset, SIZE=size)
                used |= {Path(word) for word in arguments if word.endswith(".yaml")}
    for trainer in TRAINERS:
        [arguments] = tagi_commands("distill", TRAINER=trainer)
        used |= {Path(word) for word in arguments if word.endswith(".yaml")}
    rest = {path.relative_to(ROOT) for path in EXPERIMENTS.rglob("*.yaml")} - used
    assert {path.parent.name for path in rest} == {"systems", "tables"}


def test_the_chain_of_a_task_set_agrees_on_its_adapters(monkeypatch, tmp_path):
    for taskset in TASKSETS:
        for size in SIZES:
            found = {}
            for stage in ("teachers", "pretrain", "align", "distill"):
                words = {"RUN": tmp_path, "SIZE": size, "TASKSET": taskset, "TOKENIZER": "t", "CORPORA": "c"}
                [arguments] = tagi_commands(stage, **words)
                settings = parse(monkeypatch, arguments).model.init_args
                lora = settings.lora if stage == "teachers" else settings.tagi.lora
                found[stage] = (lora.rank, lora.alpha, tuple(lora.targets), lora.seed)
            assert len(set(found.values())) == 1, (taskset, size, found)

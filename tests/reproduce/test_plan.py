import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import ROOT, tagi_commands

from tagi_lightning.backbones import SIZES
from tagi_lightning.evaluation.systems import SYSTEMS
from tagi_lightning.report.tables import read_table
from tagi_lightning.reproduce.configurations import check_choices, examples_seen, select, stage_files
from tagi_lightning.reproduce.plan import BUILT_IN, TAUGHT, Grid, check_steps, plan
from tagi_lightning.reproduce.rows import PlannedRow, planned_rows, table_names
from tagi_lightning.reproduce.systems import load_system

E = Path("experiments")
STAGES = ("pretrain-backbone", "teachers", "pretrain", "align", "distill", "evaluate")


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def grid(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "synthetic.json").write_text("{}", encoding="utf-8")
    return Grid("synthetic", "tiny", data, runs=tmp_path / "runs")


def row(name, evaluate="tagi", setting="def", **overrides):
    system = load_system(E / "systems" / f"{name}.yaml").with_overrides(overrides)
    return PlannedRow(name, system, evaluate, setting, overrides)


def rows_of_all(taskset):
    """Returns the rows of every table of a task set, each in its first setting."""
    tables = [read_table(name, E, taskset) for name in table_names(taskset, E)]
    return [row for table in tables for row in planned_rows(table, table.settings[0], E)]


def planned(grid, *rows, seeds=(0,)):
    return {job.name: job for job in plan(grid, rows, seeds)}


def option(job, name):
    words = list(job.command)
    return words[words.index(f"--{name}") + 1]


S = "synthetic-tiny-s0"


def test_names_that_stand_for_the_cores_are_its_own():
    assert set(BUILT_IN) == set(SIZES)
    assert set(TAUGHT) == {name for name, spec in SYSTEMS.items() if spec.adapter.uses_teachers}


def test_a_row_of_tagi_is_the_chain_with_its_inputs_named(grid):
    jobs = planned(grid, row("tagi"))
    pretrain = next(name for name in jobs if name.endswith("/pretrain"))
    backbone, teachers = f"{S}/pretrain-backbone", f"{S}/teachers"
    own = f"{S}/systems/tagi"
    assert list(jobs) == [backbone, pretrain, teachers, f"{own}/align", f"{own}/distill", f"{own}/evaluate"]
    assert jobs[f"{own}/align"].needs == (backbone, pretrain, teachers)
    assert jobs[f"{own}/distill"].needs == (backbone, f"{own}/align", teachers)
    shared = grid.shared(0)
    distill = jobs[f"{own}/distill"]
    assert option(distill, "run") == str(shared / "systems" / "tagi")
    assert option(distill, "backbone.name") == str(shared / "pretrain-backbone" / "model")
    assert option(distill, "model.init_args.teachers") == str(shared / "teachers" / "model")
    assert option(distill, "model.init_args.init_from") == str(shared / "systems" / "tagi" / "align" / "model")
    assert option(jobs[f"{own}/align"], "model.init_args.init_from") == str(jobs[pretrain].results[0])
    assert jobs[pretrain].run.parent == shared / "pretrain"


def test_every_job_comes_after_those_it_needs(grid):
    rows = rows_of_all("synthetic")
    jobs = plan(grid, rows, (0, 1))
    places = {job.name: place for place, job in enumerate(jobs)}
    assert len(places) == len(jobs)
    assert all(places[need] < places[job.name] for job in jobs for need in job.needs)


def test_backbone_and_teachers_are_those_of_make(grid):
    jobs = planned(grid, row("tagi"))
    for stage in ("pretrain-backbone", "teachers"):
        [words] = tagi_commands(stage, DATA=grid.data, RUN=grid.shared(0))
        assert sorted(jobs[f"{S}/{stage}"].command) == sorted(words)


def test_rows_share_backbone_teachers_and_pretraining_of_the_same_configuration(grid):
    loss = {"distill": {"model": {"init_args": {"loss": {"lambda1": 2.0}}}}}
    jobs = planned(grid, row("tagi-paper"), row("tagi-paper", **loss), row("tagi"), row("hint"))
    kinds = [job.kind for job in jobs.values()]
    assert kinds.count("pretrain-backbone") == kinds.count("teachers") == 1
    assert kinds.count("pretrain") == 3
    assert kinds.count("distill") == kinds.count("evaluate") == 4


def test_what_depends_on_a_changed_rank_or_category_is_not_shared(grid):
    jobs = planned(grid, row("tagi-paper"), row("tagi-paper", tagi={"lora": {"rank": 32}}))
    teachers = [job for job in jobs.values() if job.kind == "teachers"]
    assert teachers[0].run.name == S
    assert teachers[1].run.parent == grid.shared(0) / "teachers"
    [changed] = [job for job in jobs.values() if job.kind == "distill" and "rank=32" in job.name]
    assert option(changed, "model.init_args.teachers") == str(teachers[1].results[0])
    subset = planned(grid, row("tagi-paper", data={"categories": ["first"]}))
    kinds = {job.kind: job for job in subset.values()}
    assert select(kinds["teachers"].config, "data.init_args.categories") == ["first"]
    assert select(kinds["distill"].config, "data.init_args.categories") == ["first"]
    same = planned(grid, row("tagi-paper", tagi={"lora": {"rank": 16}}))
    assert f"{S}/teachers" in same


def test_a_setting_of_its_own_backbone_lies_apart_and_def_lies_where_make_has_it(grid):
    jobs = planned(grid, row("hypter"), row("hypter", setting="def+2pos"))
    backbones = [job for job in jobs.values() if job.kind == "pretrain-backbone"]
    assert [option(job, "setting") for job in backbones] == ["def", "def+2pos"]
    assert backbones[0].run == grid.shared(0)
    assert backbones[1].run.parent == grid.shared(0) / "pretrain-backbone"
    assert f"{S}/systems/hypter__def+2pos/distill" in jobs


def test_a_pretrained_backbone_is_not_trained_and_its_pretraining_serves_all_settings(tmp_path):
    grid = Grid("sni", "base", tmp_path, runs=tmp_path / "runs")
    jobs = planned(grid, row("hypertuning-lora"), row("hypertuning-lora", setting="def+2pos"))
    kinds = [job.kind for job in jobs.values()]
    assert "pretrain-backbone" not in kinds
    assert "teachers" not in kinds
    named = replace(grid, size="tiny", backbone="some/t5", tokenizer="tok", corpora=("a", "b"))
    [distill] = [job for job in planned(named, row("hypter")).values() if job.kind == "distill"]
    assert option(distill, "backbone.name") == "some/t5"
    assert option(distill, "tokenizer") == "tok"
    assert distill.command[-4:] != ("none", "none")


def test_rows_of_one_folder_are_evaluated_together_and_read_teachers_only_where_asked(grid):
    jobs = planned(grid, row("no-ft", "concatenated"), row("no-ft", "copy_input"), row("hypter", "mean_teachers"))
    evaluations = {job.run.name: job for job in jobs.values() if job.kind == "evaluate"}
    assert option(evaluations["no-ft"], "model.init_args.systems") == "[concatenated, copy_input]"
    assert [path.parent.name for path in evaluations["no-ft"].results] == ["concatenated", "copy_input"]
    assert evaluations["no-ft"].needs == (f"{S}/pretrain-backbone",)
    assert f"{S}/teachers" in evaluations["hypter"].needs


def test_a_logits_teacher_that_is_no_system_is_told_with_whom_it_should_teach(grid):
    with pytest.raises(ValueError, match=r"logits_teacher of system tagi-paper: there is no system .*tk-instructed"):
        planned(grid, row("tagi-paper", logits_teacher="tk-instructed"))
    with pytest.raises(ValueError, match=r"must be the name of a system beside it, got '\.\./tagi'"):
        planned(grid, row("tagi-paper", logits_teacher="../tagi"))


def test_another_systems_model_can_be_the_logits_teacher(grid):
    jobs = planned(grid, row("tagi-paper", logits_teacher="tk-instruct"))
    teacher = jobs[f"{S}/systems/tk-instruct/distill"]
    distill = jobs[f"{S}/systems/tagi-paper__logits_teacher=tk-instruct/distill"]
    assert teacher.name in distill.needs
    assert option(distill, "model.init_args.logits_teacher") == str(teacher.results[0])
    assert f"{S}/systems/tk-instruct/evaluate" not in jobs


def test_the_description_says_what_the_row_is_and_where_its_inputs_came_from(grid):
    overrides = {"distill": {"model": {"init_args": {"loss": {"lambda2": 0.0}}}}}
    job = list(planned(grid, row("tagi-paper", **overrides)).values())[-1]
    told = yaml.safe_load(job.files[job.run / "system.yaml"])
    assert (told["name"], told["setting"], told["overrides"]) == ("tagi-paper", "def", overrides)
    assert told["examples"] == 1200 * 64
    assert told["inputs"]["teachers"] == str(grid.shared(0) / "teachers" / "model")


def test_a_budget_limits_steps_and_test_instances(grid):
    limited = replace(grid, budget={"distill": 7, "evaluate": 2})
    jobs = {job.kind: job for job in plan(limited, [row("hypter")], (0,))}
    assert option(jobs["distill"], "trainer.max_steps") == "7"
    assert option(jobs["evaluate"], "data.init_args.max_test_instances") == "2"
    assert jobs["pretrain-backbone"].steps == 2200
    with pytest.raises(ValueError, match=r"wrong budget distil: 7; .* distill, evaluate"):
        replace(grid, budget={"distil": 7})


def test_a_run_trained_for_longer_than_the_budget_is_refused(grid):
    record = grid.shared(0) / "systems" / "hypter" / "distill" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"global_step": 9}), encoding="utf-8")
    check_steps(plan(replace(grid, budget={"distill": 9}), [row("hypter")], (0,)))
    with pytest.raises(ValueError, match="hypter/distill was trained for 9 steps, and the budget says 8"):
        check_steps(plan(replace(grid, budget={"distill": 8}), [row("hypter")], (0,)))


def test_the_generated_task_set_is_made_first_where_it_is_not_there(grid):
    (grid.data / "synthetic.json").unlink()
    first, second, *_ = plan(grid, [row("hypter")], (0,))
    assert first.command[:3] == ("data", "--taskset", "synthetic")
    assert second.needs == (first.name,)


def test_the_configurations_of_a_stage_are_those_of_make():
    for taskset, size in (("synthetic", "tiny"), ("sni", "base"), ("p3", "large"), ("sni", "smollm2-135m")):
        for stage in STAGES:
            [words] = tagi_commands(stage, TASKSET=taskset, SIZE=size)
            files = stage_files(E, stage, taskset, size, "cpu")
            assert [str(file) for file in files] == [word for word in words if word.endswith(".yaml")]


def test_an_unknown_choice_is_told_with_what_there_is():
    for wrong in (("snt", "tiny", "cpu"), ("sni", "huge", "cpu"), ("sni", "tiny", "tpu")):
        with pytest.raises(ValueError, match="is unknown; choose from"):
            check_choices(E, *wrong)


@pytest.mark.parametrize(("taskset", "size"), [("synthetic", "tiny"), ("sni", "tiny"), ("sni", "base"), ("p3", "base")])
def test_every_row_of_a_table_sees_the_same_number_of_examples(taskset, size, tmp_path):
    grid = Grid(taskset, size, tmp_path, runs=tmp_path / "runs")
    rows = rows_of_all(taskset)
    jobs = plan(grid, rows, (0,))
    assert len({examples_seen(job.config) for job in jobs if job.kind == "distill"}) == 1
    assert len({select(job.config, "trainer.max_steps") for job in jobs if job.kind == "pretrain"}) == 1

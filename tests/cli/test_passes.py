"""Ensemble-ICL and Full FT as `tagi evaluate` runs them, on the smallest set in P3's shape."""

import json

import pytest
import yaml
from commands import ROOT, copy_stages, tagi, tagi_commands

from tagi_lightning.data.synthetic_p3 import SyntheticP3Config, write_synthetic_p3

SMALL = SyntheticP3Config(train_rows=14, shot_rows=6, test_rows=2, documents_per_template=1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p3") / "data"
    write_synthetic_p3(folder, SMALL)
    return folder


def run_stage(stage, run, rows, *options, system=None):
    """Runs a stage as make does; returns the exit code."""
    variables = {"SYSTEM": system} if system else {}
    (arguments,) = tagi_commands(stage, TASKSET="p3-synthetic", SIZE="tiny", RUN=run, DATA=rows, **variables)
    return tagi([*arguments, *options])


@pytest.fixture(scope="module")
def concat(rows, tmp_path_factory):
    """A run with a backbone and Concat-ICL of one shot, hardly trained."""
    run = tmp_path_factory.mktemp("concat") / "run"
    steps = ("--trainer.max_steps=2", "--data.init_args.tasks.init_args.max_examples_per_template=8")
    assert run_stage("pretrain-backbone", run, rows, *steps) == 0
    few = ("--trainer.max_steps=2", "--data.init_args.max_examples_per_template=8", "--model.init_args.init_from=none")
    assert run_stage("distill", run, rows, *few, "--data.init_args.demonstrations=1", system="concat-icl") == 0
    return run


def evaluate(run, rows, *systems, options=()):
    given = (f"--model.init_args.systems=[{','.join(systems)}]", "--data.init_args.max_examples_per_template=8")
    assert run_stage("evaluate", run, rows, *given, *options) == 0


def found(run, system):
    folder = run / "evaluate" / system
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {row["id"] + row["task"]: row["logprob_sum"] for row in map(json.loads, lines)}
    return answers, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_an_ensemble_over_one_demonstration_is_concat_icl_with_it(concat, rows, tmp_path):
    copy_stages(concat, tmp_path, "pretrain-backbone", "distill")
    evaluate(tmp_path, rows, "tagi", "ensemble", options=["--data.init_args.demonstrations=1"])
    (alone, cost), (ensemble, metrics) = found(tmp_path, "tagi"), found(tmp_path, "ensemble")
    assert alone == ensemble
    assert metrics["members"] == 1
    assert metrics["flops"] == cost["flops"]


def test_a_model_that_reads_demonstrations_itself_makes_no_adapters(concat, tmp_path, capsys):
    model = ["--model", str(concat / "distill" / "model"), "--instruction", "Say it."]
    for verb in (["adapt", *model, "--output", str(tmp_path / "o")], ["predict", *model, "--input", "a"]):
        assert tagi(verb) == 1
        said = capsys.readouterr().err
        assert "demonstrations themselves (tagi.reads=demonstrations) and makes no adapter" in said
        assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_an_ensemble_averages_over_all_demonstrations(concat, rows, tmp_path):
    copy_stages(concat, tmp_path, "pretrain-backbone", "distill")
    evaluate(tmp_path, rows, "tagi", "ensemble", options=["--data.init_args.demonstrations=16"])
    (concatenated, cost), (ensemble, metrics) = found(tmp_path, "tagi"), found(tmp_path, "ensemble")
    assert metrics["members"] == 4
    assert len(ensemble) == 36
    assert ensemble.keys() == concatenated.keys()
    assert ensemble != concatenated
    assert metrics["flops"] > cost["flops"] > 0


def test_full_ft_trains_on_each_data_set_and_leaves_the_backbone_as_it_was(concat, rows, tmp_path):
    copy_stages(concat, tmp_path, "pretrain-backbone", "distill")
    short = ["--model.init_args.few_shot.steps=3", "--model.init_args.few_shot.optimizer.lr=0.01"]
    evaluate(tmp_path, rows, "full_ft", "concatenated", options=short)
    (tuned, metrics), (plain, before) = found(tmp_path, "full_ft"), found(tmp_path, "concatenated")
    assert tuned.keys() == plain.keys()
    assert all(tuned[key] != plain[key] for key in plain)
    assert (metrics["few_shot"]["data_sets"], metrics["few_shot"]["steps"]) == (2, 3)
    assert metrics["backbone_digest"] == before["backbone_digest"]
    assert metrics["relative_flops"] == 1
    assert "demonstrations" in metrics["flops_leave_out"]
    first = (concat / "pretrain-backbone/model/model.safetensors").read_bytes()
    assert (tmp_path / "pretrain-backbone/model/model.safetensors").read_bytes() == first
    evaluate(tmp_path / "fresh", rows, "concatenated", options=[f"--backbone.name={tmp_path}/pretrain-backbone/model"])
    assert found(tmp_path / "fresh", "concatenated")[0] == plain


def test_what_an_ensemble_cannot_read_is_told(concat, rows, tmp_path, capsys):
    copy_stages(concat, tmp_path, "pretrain-backbone", "distill")
    options = ["--model.init_args.systems=[ensemble]", "--data.init_args.max_examples_per_template=8"]
    assert run_stage("evaluate", tmp_path, rows, *options) == 1
    assert "data.demonstrations=0" in capsys.readouterr().err


def test_systems_of_p3_are_in_its_table():
    table = yaml.safe_load((ROOT / "experiments/tables/p3.yaml").read_text(encoding="utf-8"))
    systems = {row["system"]: row["evaluate"] for row in table["rows"]}
    assert systems["ensemble-icl"] == "ensemble"
    assert systems["full-ft"] == "full_ft"
    assert {"concat-icl", "fid-icl"} <= systems.keys()

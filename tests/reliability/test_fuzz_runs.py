"""What evaluations, comparisons and resumed trainings read of run folders, damaged in every way."""

import json

import pytest
import yaml
from commands import command
from fuzzing import MARKS, damaged_file, damaged_lines, fuzz_file, put
from report_runs import write_evaluation

from tagi_lightning.cli.compare import benchmark_lines, comparison_table, read_evaluations
from tagi_lightning.cli.evaluate import EvaluateCLI, Evaluator
from tagi_lightning.cli.runs import RunFolderError, check_options, read_run
from tagi_lightning.evaluation.benchmarks import MTEST11
from tagi_lightning.options import flatten
from tagi_lightning.report.files import ReportError

pytestmark = MARKS

OPTIONS = {
    "seed_everything": 0,
    "run": "runs/a",
    "setting": "def",
    "backbone": {"name": "tiny", "dtype": "float32", "instruction_layer": None},
    "data": {"class_path": "x.SNIDataModule", "init_args": {"prompt": "t5", "tasks_per_batch": 4, "num_workers": 0}},
    "model": {"class_path": "x.Distillation", "init_args": {"tagi": {"lora": {"rank": 4, "scale": 1.0}}}},
    "trainer": {"max_steps": 40, "precision": "32-true", "logger": [{"class_path": "x.TensorBoardLogger"}]},
}


def test_records_of_runs_that_go_on(record, tmp_path):
    path = tmp_path / "run.json"
    earlier = {"status": "interrupted", "seconds": 3.0, "starts": 1, "global_step": 4, "inputs": {"a": "0"}}

    def check(found):
        assert found.get("starts", 0) + 1 + found.get("global_step", 0) < 10**500
        assert found.get("seconds", 0.0) + 1.0 < float("inf")
        assert isinstance(found.get("inputs", {}), dict)

    fuzz_file(
        record, "run.json of a run that goes on", path, damaged_lines(earlier), lambda: read_run(tmp_path),
        RunFolderError, check=check,
    )  # fmt: skip


def test_configurations_of_runs_that_go_on(record, tmp_path):
    path, content = tmp_path / "config.yaml", yaml.safe_dump(OPTIONS).encode()
    defaults = dict(flatten(OPTIONS))

    def read():
        check_options(tmp_path, OPTIONS, lambda: defaults)
        return True

    put(path, content)
    assert read()
    fuzz_file(
        record, "config.yaml of a run that goes on", path, damaged_file(content), read, RunFolderError, named=tmp_path
    )


@pytest.fixture(scope="module")
def evaluator(tasks, tmp_path_factory):
    """An evaluation of two systems, of which nothing is loaded, with fewer options to compare."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    options = ["--model.init_args.systems=[copy_input,tagi]", "--trainer.logger=false"]
    evaluator = Evaluator(EvaluateCLI([str(word) for word in command("evaluate", run, tasks, *options)][1:]))
    assert dict(flatten(evaluator.options))["data.init_args.prompt"] == "t5"
    evaluator.options = OPTIONS
    evaluator.stage.weights.parent.mkdir(parents=True)
    return evaluator


def test_configurations_that_the_evaluated_model_was_trained_with(record, evaluator):
    path, content = evaluator.stage.weights.parent / "config.yaml", yaml.safe_dump(OPTIONS).encode()

    def read():
        evaluator.check_training()
        return True

    fuzz_file(
        record, "config.yaml of the training that an evaluation is compared with", path, damaged_file(content), read,
        RunFolderError, named=path.parent,
    )  # fmt: skip


METRICS = {"backbone_digest": "00", "weights_digest": "11", "data_digest": "22", "overall": {"n": 2}}


@pytest.mark.parametrize("damaged", ["config.yaml", "metrics.json"])
def test_evaluations_that_are_there_already(record, evaluator, tmp_path, monkeypatch, damaged):
    files = {"config.yaml": yaml.safe_dump(OPTIONS).encode(), "metrics.json": json.dumps(METRICS).encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    stage = evaluator.stage
    monkeypatch.setattr(stage, "configure_model", lambda: None)
    monkeypatch.setattr(stage, "checkpoint_backbone_digest", lambda: "00")
    monkeypatch.setattr(stage, "model", Model(), raising=False)
    monkeypatch.setattr(evaluator, "data_digest", lambda name: "22")

    def read():
        evaluator.check_current("tagi", tmp_path)
        return True

    assert read()
    fuzz_file(
        record, f"{damaged} of an evaluation that is there already", tmp_path / damaged,
        damaged_file(files[damaged]), read, RunFolderError, named=tmp_path,
    )  # fmt: skip


class Model:
    """Weights whose digest is known."""

    def digest(self):
        return "11"


def test_evaluations_that_are_compared(record, tmp_path):
    scores = dict.fromkeys(MTEST11[:3], 50.0)
    for system in ("tagi", "no_instruction"):
        write_evaluation(tmp_path, system, score=scores, metric="accuracy_mean")
    path = tmp_path / "evaluate" / "tagi" / "metrics.json"

    def read():
        found = read_evaluations(tmp_path)
        return comparison_table(found) + benchmark_lines(found)

    def check(told):
        assert "no instruction" in told.lower()
        told.encode()

    fuzz_file(
        record, "metrics.json that are compared", path, damaged_file(path.read_bytes()), read, ReportError, check=check
    )

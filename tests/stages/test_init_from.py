import json

import pytest
from commands import command, copy_stages, record_of, same_tensors, tagi, weights

STILL = ["--trainer.max_steps=1", "--model.init_args.optimizer.lr=0"]
"""One step that moves nothing, so that a model shows where it came from."""


def passed(run, stage):
    return json.loads((run / stage / "model" / "config.json").read_text(encoding="utf-8"))["stages"]


def distill(run, task_set, *options):
    return tagi(command("distill", run, task_set, *STILL, *options))


def test_the_chain_is_recorded_stage_by_stage(chain):
    assert passed(chain, "pretrain") == ["pretrain"]
    assert passed(chain, "align") == ["pretrain", "align"]
    assert passed(chain, "distill") == ["pretrain", "align", "distill"]


def test_auto_is_the_aligned_hypernetwork_where_the_run_has_one(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "pretrain", "align")
    assert distill(tmp_path, task_set) == 0
    assert same_tensors(weights(tmp_path, "distill"), weights(chain, "align"))
    assert passed(tmp_path, "distill") == ["pretrain", "align", "distill"]


def test_auto_is_the_pretrained_one_where_nothing_was_aligned(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "pretrain")
    assert distill(tmp_path, task_set) == 0
    assert same_tensors(weights(tmp_path, "distill"), weights(chain, "pretrain"))
    assert passed(tmp_path, "distill") == ["pretrain", "distill"]


@pytest.mark.parametrize(
    "ablation", ["--model.init_args.loss.lambda2=0", "--model.init_args.teachers=none"], ids=["lambda2", "teachers"]
)
def test_an_ablation_of_alignment_never_starts_from_aligned_weights(chain, task_set, tmp_path, ablation):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "pretrain", "align")
    assert distill(tmp_path, task_set, ablation) == 0
    assert "align" not in passed(tmp_path, "distill")
    assert same_tensors(weights(tmp_path, "distill"), weights(chain, "pretrain"))


@pytest.mark.parametrize("stage", ["align", "pretrain"])
def test_a_stage_is_that_of_the_run_whatever_the_loss(chain, task_set, tmp_path, stage, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone", "pretrain", "align")
    options = ["--model.init_args.teachers=none", f"--model.init_args.init_from={stage}"]
    assert distill(tmp_path, task_set, *options, "--model.init_args.loss.lambda1=0") == 0
    assert same_tensors(weights(tmp_path, "distill"), weights(chain, stage))
    assert f"from {tmp_path / stage / 'model'}" in capsys.readouterr().out
    assert record_of(tmp_path, "distill")["init_from"] == str(tmp_path / stage / "model")


def test_a_stage_that_the_run_has_not_is_told(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone", "pretrain")
    options = ["--model.init_args.teachers=none", "--model.init_args.init_from=align"]
    assert distill(tmp_path, task_set, *options, "--model.init_args.loss.lambda1=0") == 1
    assert "make it: make align" in capsys.readouterr().err


def test_none_is_fresh_weights(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers", "pretrain", "align")
    assert distill(tmp_path, task_set, "--model.init_args.init_from=none") == 0
    assert passed(tmp_path, "distill") == ["distill"]
    found = weights(tmp_path, "distill")
    heads = [name for name in found if ".heads." in name]
    assert heads
    assert all(not found[name].any() for name in heads)


def test_a_folder_is_what_it_names_and_of_the_same_shape(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers")
    folder = f"--model.init_args.init_from={chain / 'distill' / 'model'}"
    assert distill(tmp_path, task_set, folder) == 0
    assert passed(tmp_path, "distill") == ["pretrain", "align", "distill", "distill"]
    other = "--model.init_args.tagi.hypernetwork.hidden=8"
    backbone = f"--backbone.name={chain / 'pretrain-backbone' / 'model'}"
    assert distill(tmp_path / "other", task_set, folder, other, backbone) == 1
    assert "do not fit this configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("absent", "no tagi model in"),
        ("pretrain-backbone", "holds something else, expected tagi"),
        ("teachers", "holds teachers, expected tagi"),
    ],
)
def test_a_folder_without_such_a_model_is_refused(chain, task_set, tmp_path, capsys, name, told):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers")
    folder = tmp_path / name / "model"
    assert distill(tmp_path, task_set, f"--model.init_args.init_from={folder}") == 1
    message = capsys.readouterr().err
    assert str(folder) in message
    assert told in message

"""What the stages log, read back from their TensorBoard files."""

import math

import pytest
from commands import STAGES, STEPS, command, copy_stages, tagi
from table_cells import table_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tagi_lightning.stages import Distillation

STACKS = ("encoder_self", "decoder_self", "decoder_cross")
PERFORMANCE = {"perf/examples_per_s", "perf/tokens_per_s", "perf/loader_share", "perf/padding_share"}
EXPECTED = {
    "pretrain-backbone": set(),
    "teachers": {f"teachers/{stack}/norm_{name}" for stack in STACKS for name in ("a", "b", "ba")},
    "pretrain": {f"adapter/{stack}/norm_{name}" for stack in STACKS for name in ("a", "b", "ba")}
    | {"fusion/gate_0", "fusion/gate_1"},
    "align": {"train/cosine_to_teacher"},
    "distill": {f"adapter/{stack}/norm_{name}" for stack in STACKS for name in ("a", "b", "ba")}
    | {f"train/loss_{name}" for name in ("pred", "kl", "ins")}
    | {f"train/grad_norm_{name}" for name in ("pred", "kl", "ins")}
    | {"train/lambda_ins", "train/loss_ins_raw", "fusion/gate_0"},
}


def curves(folder):
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def values(found, tag):
    return [event.value for event in found.Scalars(tag)]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_rates_and_norms_of_every_step_are_there_and_finite(chain, stage):
    found = curves(chain / stage)
    tags = set(found.Tags()["scalars"])
    [rate] = [tag for tag in tags if tag.startswith("lr-")]
    assert EXPECTED[stage] | {"train/loss"} | PERFORMANCE <= tags
    for tag in EXPECTED[stage] | {"train/loss", rate}:
        # Lightning logs the rate of an optimizer without a scheduler once more, at the start
        assert len(found.Scalars(tag)) == STEPS + (tag == "lr-BankAdamW"), tag
        assert all(math.isfinite(value) for value in values(found, tag)), tag


@pytest.mark.parametrize("stage", STAGES)
def test_performance_is_positive_and_shares_are_shares(chain, stage):
    found = curves(chain / stage)
    assert all(value > 0 for value in values(found, "perf/tokens_per_s"))
    # align reads instructions alone
    assert all((value > 0) == (stage != "align") for value in values(found, "perf/examples_per_s"))
    for tag in ("perf/loader_share", "perf/padding_share"):
        assert all(0 <= value <= 1 for value in values(found, tag))


def test_the_terms_add_up_to_the_loss_and_the_first_update_is_zero(chain):
    found = curves(chain / "distill")
    terms = zip(*(values(found, f"train/loss_{name}") for name in ("pred", "kl", "ins")), strict=True)
    assert values(found, "train/loss") == pytest.approx([sum(step) for step in terms])
    assert all(0.5 <= value <= 1 for value in values(found, "train/lambda_ins"))
    pretrain = curves(chain / "pretrain")
    assert values(pretrain, "adapter/encoder_self/norm_b")[0] == 0
    assert values(pretrain, "adapter/encoder_self/norm_a")[0] > 0
    assert values(pretrain, "fusion/gate_0")[0] == 0


def test_costly_figures_are_computed_for_the_batch_that_is_written_alone(chain, task_set, tmp_path, monkeypatch):
    copy_stages(chain, tmp_path, *STAGES[:-1])
    measured, method = [], Distillation.log_gradient_norms
    monkeypatch.setattr(Distillation, "log_gradient_norms", lambda *args: measured.append(1) or method(*args))
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.max_steps=4", "--trainer.log_every_n_steps=2"]
    assert tagi(command("distill", tmp_path, task_set, *options)) == 0
    found = curves(tmp_path / "distill")
    assert len(measured) == 2
    for tag in ("train/loss", "train/grad_norm_pred", "train/lambda_ins", "adapter/encoder_self/norm_b"):
        assert [event.step + 1 for event in found.Scalars(tag)] == [2, 4], tag


@pytest.mark.parametrize(("steps", "logged"), [(5, 5), (30, 10)])
def test_a_short_run_has_a_curve(task_set, tmp_path, steps, logged):
    arguments = command("pretrain-backbone", tmp_path, task_set, f"--trainer.max_steps={steps}")
    assert tagi([argument for argument in arguments if "log_every_n_steps" not in argument]) == 0
    assert len(curves(tmp_path / "pretrain-backbone").Scalars("train/loss")) == logged


@pytest.mark.parametrize("split", ["instances", "tasks"])
def test_validation_scores_answers_and_shows_some(chain, task_set, tmp_path, split):
    copy_stages(chain, tmp_path, "pretrain-backbone", "pretrain")
    options = [
        f"--data.init_args.val_split={split}",
        "--data.init_args.val_share=0.2",
        "--model.init_args.teachers=none",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
    ]
    assert tagi(command("distill", tmp_path, task_set, *options)) == 0
    found = curves(tmp_path / "distill")
    for tag in ("val/rougeL", "val/exact_match"):
        [value] = values(found, tag)
        assert 0 <= value <= 100
    assert values(found, "val/loss")[0] > 0
    text = found.Tensors("val/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    heading, _, *answers = table_rows(text)
    assert heading == ["task", "prediction", "reference", "right"]
    assert len(answers) > 1


def test_teachers_are_validated_on_instances_they_were_not_shown(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    options = ["--data.init_args.val_split=instances", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert tagi(command("teachers", tmp_path, task_set, *options, "--data.init_args.val_share=0.2")) == 0
    assert len(curves(tmp_path / "teachers").Scalars("val/loss")) == 1

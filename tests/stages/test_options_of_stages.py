"""Precision and storage options through whole stages: what trains stays float32, and the losses stay what they are."""

import math
from types import SimpleNamespace

import pytest
import torch
from commands import STAGES, STEPS, command, copy_stages, record_of, tagi, weights
from lightning.pytorch.strategies import FSDPStrategy

from tagi_lightning.backbones import BackboneConfig
from tagi_lightning.stages import HypernetworkPretraining

MIXED = ["--trainer.precision=bf16-mixed"]
FROZEN = ["--backbone.dtype=bfloat16"]
INT8 = ["--backbone.quantization=int8", *MIXED]
CHECKPOINTED = ["--backbone.gradient_checkpointing=true"]


def train(chain, task_set, run, stage, options):
    """Runs one stage on what the chain's earlier stages have left; returns its last loss and the chain's."""
    copy_stages(chain, run, *STAGES[: STAGES.index(stage)])
    assert tagi(command(stage, run, task_set, f"--trainer.max_steps={STEPS}", *options)) == 0
    return record_of(run, stage)["metrics"]["train/loss"], record_of(chain, stage)["metrics"]["train/loss"]


@pytest.mark.parametrize(
    ("stage", "options", "tolerance"),
    [
        *((stage, MIXED, 0.05) for stage in STAGES),
        *((stage, FROZEN, 0.05) for stage in STAGES[1:]),
        *((stage, INT8, 0.1) for stage in ("teachers", "distill")),
        *((stage, CHECKPOINTED, 1e-5) for stage in ("pretrain-backbone", "teachers", "distill")),
    ],
)
def test_a_stage_trains_float32_weights_to_nearly_the_same_loss(chain, task_set, tmp_path, stage, options, tolerance):
    found, expected = train(chain, task_set, tmp_path, stage, options)
    assert math.isfinite(found)
    assert found == pytest.approx(expected, rel=tolerance)
    state = torch.load(tmp_path / stage / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for tensors in (state, weights(tmp_path, stage)):
        assert tensors
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_checkpoint_made_with_one_way_of_computing_goes_on_with_another(chain, task_set, tmp_path):
    options = ["--backbone.gradient_checkpointing=true"]
    copy_stages(chain, tmp_path, *STAGES)
    assert tagi(command("distill", tmp_path, task_set, f"--trainer.max_steps={STEPS + 1}", *options)) == 0
    assert record_of(tmp_path, "distill")["global_step"] == STEPS + 1


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_precisions_that_would_train_in_16_bits_are_refused(chain, task_set, tmp_path, capsys, precision):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    assert tagi(command("teachers", tmp_path, task_set, f"--trainer.precision={precision}")) == 1
    assert "bf16-mixed" in capsys.readouterr().err


def stage_under(backbone, **trainer):
    stage = HypernetworkPretraining(backbone=backbone)
    stage._trainer = SimpleNamespace(**{"precision": "bf16-mixed", "strategy": None, "max_steps": 1} | trainer)
    return stage


def test_float16_mixed_is_refused_for_t5(backbone):
    stage = stage_under(BackboneConfig(), precision="16-mixed")
    stage.build = lambda: setattr(stage, "backbone", backbone)
    with pytest.raises(ValueError, match=r"overflow in float16.*precision=bf16-mixed"):
        stage.configure_model()


@pytest.mark.parametrize(
    "options", [["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:10"], ["--trainer.max_steps=0"]]
)
def test_a_schedule_needs_a_number_of_steps(chain, task_set, tmp_path, capsys, options):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    assert tagi(command("teachers", tmp_path, task_set, *options)) == 1
    assert "gives the learning rate's schedule no number of steps: give --trainer.max_steps" in capsys.readouterr().err


def test_epochs_give_a_number_of_steps(chain, task_set, tmp_path):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    options = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--model.init_args.report_instances=0"]
    assert tagi(command("teachers", tmp_path, task_set, *options, "--data.init_args.max_train_instances=1")) == 0


@pytest.mark.parametrize("stored", [{"quantization": "int8"}, {"dtype": "bfloat16"}])
def test_fsdp_refuses_frozen_weights_of_another_type_than_the_trained_ones(stored):
    stage = stage_under(BackboneConfig(**stored), strategy=FSDPStrategy())
    with pytest.raises(ValueError, match=r"(int8|bfloat16) does not go with .*fsdp"):
        stage.configure_model()

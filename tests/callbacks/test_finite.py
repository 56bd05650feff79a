import pytest
import torch
from commands import command, copy_stages, tagi, weights

from tagi_lightning.callbacks import FiniteSteps
from tagi_lightning.stages.distill import Distillation

STEP = 2
"""The optimizer step that goes wrong, of three of two batches each."""


def infinite_gradient(loss):
    loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss


WRONG = {
    "loss nan": lambda loss: loss * torch.nan,
    "loss inf": lambda loss: loss / 0.0,
    "gradient of model.": infinite_gradient,
}


@pytest.fixture
def start(chain, task_set, tmp_path, monkeypatch):
    """A function that trains distill, with the loss of one batch changed."""
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "teachers", "pretrain", "align")
    options = ["--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2", "--data.init_args.tasks_per_batch=6"]
    step = Distillation.training_step

    def start(change, *more):
        def changed(self, batch, batch_index):
            loss = step(self, batch, batch_index)
            if batch_index == 2 * STEP - 1:
                changed.batch = batch
                return change(loss)
            return loss

        monkeypatch.setattr(Distillation, "training_step", changed)
        code = tagi(command("distill", tmp_path / "run", task_set, *options, *more))
        return code, getattr(changed, "batch", None)

    return start


def last_checkpoint(run):
    return torch.load(run / "distill" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_number_stops_the_run_before_the_step_and_names_the_examples(start, tmp_path, capsys, wrong):
    code, batch = start(WRONG[wrong])
    told = capsys.readouterr().err
    assert code == 1
    assert f"step {STEP}: {wrong}" in told
    assert f"{batch.tasks[0]}/{batch.ids[0]}" in told
    assert "Traceback" not in told
    dump = torch.load(tmp_path / "run" / "distill" / "non-finite" / f"step-{STEP}-device-0.pt", weights_only=True)
    assert dump["step"] == STEP
    assert dump["batches"][1]["ids"] == batch.ids
    assert torch.equal(dump["batches"][1]["input"]["ids"], batch.input.ids)
    state = last_checkpoint(tmp_path / "run")
    assert state["global_step"] == STEP - 1
    assert all(weight.isfinite().all() for weight in state["state_dict"].values())


def test_the_same_command_goes_on_and_leaves_the_step_out_where_it_may(start, tmp_path, capsys):
    assert start(WRONG["loss nan"])[0] == 1
    capsys.readouterr()
    assert start(WRONG["loss nan"], "--max_skipped_steps=1")[0] == 0
    told = capsys.readouterr().out
    assert "going on from" in told
    assert f"step {STEP} is left out (1 of at most 1): loss nan" in told
    state = last_checkpoint(tmp_path / "run")
    assert state["global_step"] == 3
    assert state["callbacks"]["FiniteSteps"] == {"skipped": 1}
    # two steps moved the weights, not three
    assert {float(own["step"]) for own in state["optimizer_states"][0]["state"].values()} == {2.0}
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run", "distill").values())


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="must be 0 or more"):
        FiniteSteps(-1)


def no_memory(loss):
    return torch.empty(1 << 55, dtype=torch.uint8).sum()


def test_memory_that_runs_out_is_told_with_what_to_lower(start, tmp_path, capsys):
    assert start(no_memory)[0] == 1
    told = capsys.readouterr().err
    assert "out of memory" in told
    assert "gradient_checkpointing=true" in told
    assert "Traceback" not in told
    assert last_checkpoint(tmp_path / "run")["global_step"] == STEP - 1

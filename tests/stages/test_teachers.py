import json
from functools import partial

import pytest
import torch
from commands import VALIDATED, command, copy_stages, record_of, same_tensors, tagi, weights
from torch import nn

from tagi_lightning.callbacks import LastCheckpoint
from tagi_lightning.cli import lightning_cli
from tagi_lightning.cli.fit import FitCLI
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraBank
from tagi_lightning.stages.base import Stage
from tagi_lightning.stages.teachers import schedule
from tagi_lightning.teachers.teaching import count_steps, teacher_losses

FEW = ["--data.init_args.tasks_per_batch=2", "--data.init_args.instances_per_task=3"]
"""Batches that most categories are absent from."""


def cli_of(run, task_set, *options):
    """Returns what `tagi fit` builds, with the stage as training would start it."""
    cli = FitCLI([str(word) for word in command("teachers", run, task_set, *options)][1:])
    cli.model.trainer = cli.trainer
    cli.trainer.datamodule = cli.datamodule
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    cli.model.configure_model()
    return cli


def teach(run, task_set, *options):
    return tagi(command("teachers", run, task_set, *options))


@pytest.fixture
def run(chain, tmp_path):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    return tmp_path / "run"


def own_examples(batch, adapter):
    rows = (batch.category[batch.task_index] == adapter).nonzero().flatten()
    return Tokens(batch.prompt.ids[rows], batch.prompt.mask[rows]), batch.labels[rows]


def train_alone(stage, batches, adapter, steps, accumulate, max_norm):
    """Trains one teacher as anyone would: AdamW and a schedule over the steps that have examples of its category."""
    bank = LoraBank(stage.bank.groups.sites, stage.lora, ["alone"])
    optimizer = torch.optim.AdamW(bank.parameters(), lr=stage.optimizer_config.lr, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(stage.optimizer_config, steps))
    for start in range(0, len(batches), accumulate):
        parts = [own_examples(batch, adapter) for batch in batches[start : start + accumulate]]
        losses = []
        for prompt, labels in parts:
            alone = torch.zeros(len(labels), dtype=torch.long)
            if len(labels):
                losses.append(teacher_losses(stage.backbone, bank, prompt, labels, alone[:1], alone))
        if losses:
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()
            nn.utils.clip_grad_norm_(bank.parameters(), max_norm)
            optimizer.step()
            rates.step()
    return bank.state_dict()


def weights_moved(bank, state):
    """Returns how many adapters differ from a fresh bank's."""
    begun = bank.state_dict()
    differing = [(state[name] != begun[name]).flatten(1).any(1) for name in begun]
    return int(torch.stack(differing).any(0).sum())


def test_the_commands_teachers_equal_those_trained_one_by_one(run, task_set):
    steps, accumulate, max_norm = 5, 2, 0.5
    options = [
        *FEW,
        f"--trainer.max_steps={steps}",
        f"--trainer.accumulate_grad_batches={accumulate}",
        f"--trainer.gradient_clip_val={max_norm}",
        "--model.init_args.optimizer.weight_decay=0.1",
        "--model.init_args.optimizer.warmup=0.4",
    ]
    assert teach(run, task_set, *options) == 0
    together = weights(run, "teachers")
    (run / "teachers" / "run.json").unlink()
    cli = cli_of(run, task_set, *options)
    stage, loader = cli.model, cli.datamodule.train_dataloader()
    planned = stage.planned_categories()
    own = count_steps(planned, len(stage.bank.names), accumulate, steps)
    batches = [batch for _, batch in zip(range(steps * accumulate), loader, strict=False)]
    present = [set(batch.category.tolist()) for batch in batches]
    assert present == planned[: len(batches)]
    counts = [sum(adapter in each for each in present) for adapter in range(len(stage.bank.names))]
    assert min(counts) == 0
    assert max(counts) >= 3
    assert weights_moved(stage.bank, together) >= 3
    for adapter, own_steps in enumerate(own):
        alone = train_alone(stage, batches, adapter, own_steps, accumulate, max_norm)
        begun = stage.bank.state_dict()
        for name, expected in alone.items():
            moved, found = expected[0] - begun[name][adapter], together[name][adapter] - begun[name][adapter]
            assert bool(counts[adapter]) or not found.any()
            assert (found - moved).norm() <= 1e-4 * moved.norm()


def test_teachers_that_no_longer_improve_stop_at_their_best_and_end_the_stage(run, task_set, capsys):
    options = [*VALIDATED, "--trainer.max_steps=200", "--model.init_args.optimizer.lr=1"]
    assert teach(run, task_set, *options) == 0
    record = record_of(run, "teachers")
    assert record["converged"]
    assert record["status"] == "finished"
    assert 4 <= record["global_step"] < 200
    last = torch.load(run / "teachers" / "checkpoints" / "last.ckpt", weights_only=True)
    selection = last["tagi"]["selection"]
    assert selection["stopped"].all()
    assert selection["best"].isfinite().all()
    assert same_tensors(weights(run, "teachers"), selection["weights"])
    capsys.readouterr()
    assert teach(run, task_set, *options) == 0
    assert "already finished" in capsys.readouterr().out


class Stop(Exception):
    pass


def stop_at(patch, step):
    log_loss = Stage.log_loss

    def interrupted(self, *args, **kwargs):
        if self.global_step == step:
            raise Stop
        log_loss(self, *args, **kwargs)

    patch.setattr(Stage, "log_loss", interrupted)


def save_checkpoints(every, folder, _, *args):
    return LastCheckpoint(folder, every, *args)


@pytest.mark.parametrize(("at_step", "every"), [(5, 100), (6, 2), (7, 3)])
def test_a_resumed_selection_ends_with_the_bits_of_an_uninterrupted_one(
    chain, run, task_set, tmp_path, monkeypatch, at_step, every
):
    options = [*FEW, *VALIDATED, "--trainer.max_steps=9", "--model.init_args.optimizer.lr=0.2"]
    whole = tmp_path / "whole"
    copy_stages(chain, whole, "pretrain-backbone")
    assert teach(whole, task_set, *options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(lightning_cli, "LastCheckpoint", partial(save_checkpoints, every))
        stop_at(patch, at_step)
        with pytest.raises(Stop):
            teach(run, task_set, *options)
    assert teach(run, task_set, *options) == 0
    assert same_tensors(weights(run, "teachers"), weights(whole, "teachers"))
    last = [torch.load(each / "teachers/checkpoints/last.ckpt", weights_only=True) for each in (run, whole)]
    found, expected = (state["tagi"]["selection"] for state in last)
    assert all(torch.equal(found[name], expected[name]) for name in ("best", "waited", "steps", "stopped"))
    assert found["stopped"].any()
    assert same_tensors(found["weights"], expected["weights"])
    assert found["waited"].any()


def test_a_stopped_teachers_examples_are_neither_computed_nor_counted(run, task_set, monkeypatch):
    stage = cli_of(run, task_set, "--trainer.logger=false", "--data.init_args.tasks_per_batch=8").model
    batch = next(iter(stage.trainer.datamodule.train_dataloader()))
    optimizer = stage.configure_optimizers()
    monkeypatch.setattr(type(stage), "bank_optimizer", optimizer)
    monkeypatch.setattr(stage, "log", lambda *args, **kwargs: None)
    adapters = batch.category[batch.task_index]
    stopped = int(adapters[0])
    others = sorted(set(adapters.tolist()) - {stopped})
    assert others
    for done in ([stopped], [stopped, *others]):
        stage.selection.stopped[done] = True
        optimizer.zero_grad()
        loss = stage.training_step(batch, 0)
        loss.backward()
        stage.on_after_backward()
        going = [adapter for adapter in others if adapter not in done]
        assert optimizer.examples.nonzero().flatten().tolist() == going
        moved = {row for grad in (p.grad for p in stage.bank.parameters()) for row in grad.flatten(1).any(1).nonzero()}
        assert sorted({int(row) for row in moved}) == going
    assert loss == 0


REPORT = ["--trainer.max_steps=1", "--data.init_args.max_train_instances=3", "--data.init_args.tasks_per_batch=90"]


def test_the_report_names_teachers_that_gain_nothing(run, task_set, capsys):
    options = [*REPORT, "--model.init_args.report_instances=4", "--model.init_args.optimizer.lr=0"]
    assert teach(run, task_set, *options) == 0
    report = json.loads((run / "teachers" / "report.json").read_text(encoding="utf-8"))
    names = json.loads((run / "teachers" / "model" / "config.json").read_text(encoding="utf-8"))["names"]
    assert report["on"] == "held-out instances"
    assert sorted(row["category"] for row in report["teachers"]) == sorted(names)
    assert all(row["instances"] == 4 and row["gain"] == 0 for row in report["teachers"])
    told = capsys.readouterr().out
    [warned] = [line for line in told.splitlines() if "WARNING" in line]
    assert all(name in warned for name in names)
    assert "| category" in told


def test_the_reports_losses_are_those_of_the_saved_teachers(run, task_set):
    assert teach(run, task_set, *REPORT, "--model.init_args.optimizer.lr=0.01") == 0
    report = json.loads((run / "teachers" / "report.json").read_text(encoding="utf-8"))
    (run / "teachers" / "run.json").unlink()
    stage = cli_of(run, task_set, *REPORT, "--model.init_args.optimizer.lr=0.01").model
    stage.bank.load_state_dict(weights(run, "teachers"))
    found = {name: [] for name in stage.bank.names}
    with torch.no_grad():
        for batch in stage.trainer.datamodule.held_out_dataloader():
            for loss, adapter in zip(stage.losses(batch), batch.category[batch.task_index], strict=True):
                found[stage.bank.names[adapter]].append(loss.item())
    rows = {row["category"]: row for row in report["teachers"]}
    whole = [name for name, losses in found.items() if len(losses) <= 50]
    assert whole
    for name in whole:
        assert rows[name]["instances"] == len(found[name])
        assert rows[name]["teacher"] == pytest.approx(sum(found[name]) / len(found[name]), rel=1e-4)
        assert rows[name]["gain"] != 0


def test_where_training_takes_all_instances_validation_is_reported_or_their_lack(chain, run, task_set, capsys):
    report = json.loads((chain / "teachers" / "report.json").read_text(encoding="utf-8"))
    assert {row["instances"] for row in report["teachers"]} == {0}
    assert teach(run, task_set, *VALIDATED, "--trainer.max_steps=2") == 0
    report = json.loads((run / "teachers" / "report.json").read_text(encoding="utf-8"))
    assert report["on"] == "validation instances"
    assert all(row["instances"] > 0 for row in report["teachers"])


def test_a_report_of_no_instances_is_none(run, task_set):
    assert teach(run, task_set, "--trainer.max_steps=1", "--model.init_args.report_instances=0") == 0
    assert not (run / "teachers" / "report.json").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.init_args.optimizer.name=adafactor", "optimizer.name=adamw"),
        ("--trainer.gradient_clip_algorithm=value", "teachers clip by norm"),
        ("--model.init_args.patience=0", "patience must be at least 1"),
    ],
)
def test_what_a_bank_cannot_do_is_told(run, task_set, capsys, option, told):
    assert teach(run, task_set, "--trainer.max_steps=1", option) == 1
    assert told in capsys.readouterr().err

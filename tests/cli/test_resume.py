"""The core of tests/reliability that takes seconds: stops in the middle of an accumulation and of a validation."""

import os
import signal

import pytest
from commands import STAGES, command, copy_stages, tagi
from reliability_runs import difference, figures, final_state

from tagi_lightning.stages.base import Stage
from tagi_lightning.stages.tagi import TagiStage

OPTIONS = {
    "pretrain": [
        "--trainer.val_check_interval=3",
        "--trainer.check_val_every_n_epoch=null",
        "--data.init_args.val_share=0.3",
        "--data.init_args.max_val_sequences=12",
        "--data.init_args.eval_batch_size=4",
    ],
    "align": ["--trainer.accumulate_grad_batches=2", "--data.init_args.tasks_per_batch=24"],
}
DROPOUT = "--model.init_args.tagi.hypernetwork.dropout=0.2"


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def prepared(chain, task_set, tmp_path_factory):
    """A function that returns a new run folder and the command that trains a stage in it for six steps."""

    def prepared(stage):
        run = tmp_path_factory.mktemp(stage) / "run"
        copy_stages(chain, run, *STAGES[: STAGES.index(stage)])
        options = ["--trainer.max_steps=6", "--trainer.log_every_n_steps=1", DROPOUT, *OPTIONS[stage]]
        return run, command(stage, run, task_set, *options)

    return prepared


@pytest.fixture(scope="module")
def whole(prepared):
    """A function that trains a stage without a stop, once; returns its run folder."""
    runs = {}

    def whole(stage):
        if stage not in runs:
            runs[stage], arguments = prepared(stage)
            assert tagi(arguments) == 0
        return runs[stage]

    return whole


def at_call(patch, owner, name, number, act):
    """Makes `act` happen at the `number`th call of a method, before it does anything."""
    original, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            act()
        return original(*args, **kwargs)

    patch.setattr(owner, name, called)


def assert_same(run, stage, whole):
    assert difference(final_state(run, stage), final_state(whole, stage)) is None
    assert figures(run / stage) == figures(whole / stage)


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_an_exception_in_the_middle_of_an_accumulation_loses_nothing(prepared, whole, monkeypatch, batch):
    run, arguments = prepared("align")

    def stop():
        raise Stop

    with monkeypatch.context() as patch:
        at_call(patch, Stage, "log_loss", batch, stop)
        with pytest.raises(Stop):
            tagi(arguments)
    assert tagi(arguments) == 0
    assert_same(run, "align", whole("align"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("owner", "name", "call"), [(Stage, "log_loss", 4), (TagiStage, "validation_step", 4)])
def test_a_signal_in_training_or_validation_loses_nothing(
    prepared, whole, monkeypatch, capfd, number, code, owner, name, call
):
    run, arguments = prepared("pretrain")
    former = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, call, lambda: os.kill(os.getpid(), number))
        assert tagi(arguments) == code
    assert signal.getsignal(number) is former
    told = capfd.readouterr()
    assert "stopping at the next batch" in told.err
    assert "the same command goes on" in told.out
    assert tagi(arguments) == 0
    assert "pretrain: going on from" in capfd.readouterr().out
    assert_same(run, "pretrain", whole("pretrain"))

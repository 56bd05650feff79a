from types import SimpleNamespace

import pytest
from commands import command, copy_stages, record_of, weights
from device_runs import devices, double_precision, run_forked
from reliability_runs import Process

from tagi_lightning.callbacks import SharedBatches


@pytest.mark.slow
def test_two_devices_train_what_one_trains(chain, task_set, tmp_path):
    options = ["--trainer.max_steps=3", "--trainer.precision=64-true", "--trainer.accumulate_grad_batches=2"]
    options += ["--data.init_args.tasks_per_batch=3", "--data.init_args.instances_per_task=1"]
    for count in (1, 2):
        folder = tmp_path / f"{count}"
        copy_stages(chain, folder / "run", "pretrain-backbone")
        arguments = command("teachers", folder / "run", task_set, *options, *(devices(2) if count == 2 else []))
        if count == 1:
            assert Process(arguments, folder / "0.log", double_precision).wait() == 0
        else:
            assert run_forked(arguments, folder, 2, double_precision) == [0, 0], (folder / "1.log").read_text()
    one, two = (weights(tmp_path / count / "run", "teachers") for count in "12")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9
    record = record_of(tmp_path / "2" / "run", "teachers")
    assert (record["devices"], record["effective_batch"]) == (2, 6)
    told = (
        "2 devices: batches at once 2, devices to a batch 1, accumulation 1 instead of 2; a step reads the 6 examples"
    )
    assert told in (tmp_path / "2" / "0.log").read_text()
    assert told not in (tmp_path / "2" / "1.log").read_text()


def trainer(devices, accumulate_grad_batches, **options):
    """What the callback reads of a trainer, over batches of three examples."""
    sampler = SimpleNamespace(plan=lambda epoch: [[0, 1, 2]] * 4)
    data = SimpleNamespace(train_dataloader=lambda: SimpleNamespace(batch_sampler=sampler))
    known = {"val_check_interval": 1.0, "limit_train_batches": 1.0, "is_global_zero": True, "datamodule": data}
    known |= {"world_size": devices, "accumulate_grad_batches": accumulate_grad_batches, "strategy": None}
    return SimpleNamespace(**known | options, precision_plugin=SimpleNamespace())


@pytest.mark.parametrize(
    ("devices", "accumulated", "together", "left"),
    [(2, 1, 1, 1), (2, 4, 2, 2), (8, 4, 4, 1), (3, 2, 1, 2), (4, 6, 2, 3)],
)
def test_accumulation_follows_the_devices(devices, accumulated, together, left):
    asked = trainer(devices, accumulated, val_check_interval=12)
    SharedBatches().setup(asked, None, "fit")
    assert (asked.datamodule.together, asked.accumulate_grad_batches) == (together, left)
    assert asked.val_check_interval == 12 // together


def test_more_devices_than_examples_are_refused():
    with pytest.raises(ValueError, match="take 6 devices or fewer"):
        SharedBatches().setup(trainer(8, 2), None, "fit")


def test_an_interval_inside_a_turn_is_refused():
    with pytest.raises(ValueError, match=r"val_check_interval=7 .* take a multiple of 2"):
        SharedBatches().setup(trainer(2, 4, val_check_interval=7), None, "fit")


def test_batches_pass_every_precision_as_they_are():
    asked = trainer(1, 2)
    SharedBatches().setup(asked, None, "test")
    batch = object()
    assert asked.precision_plugin.convert_input(batch) is batch
    assert asked.accumulate_grad_batches == 2

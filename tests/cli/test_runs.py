import json
import os
import subprocess
import sys

import pytest

from tagi_lightning.cli.runs import (
    FREE_TRAINER_KEYS,
    RunFolderError,
    RunRecord,
    differences,
    environment,
    git_state,
    locked,
    read_run,
    reason,
    write_json,
)

CONFIG = {"run": "a", "seed_everything": 0, "model": {"init_args": {"lr": 1.0, "sites": ["q", "v"]}}, "trainer": {}}


def test_equal_configurations_do_not_differ():
    assert differences(CONFIG, json.loads(json.dumps(CONFIG))) == []


def test_every_option_that_changes_training_is_named_with_both_values():
    other = {"run": "b", "seed_everything": 1, "model": {"init_args": {"lr": 2.0, "sites": ["q"]}}, "trainer": {}}
    assert differences(CONFIG, other) == [
        "model.init_args.lr: 1.0 there, 2.0 now",
        "model.init_args.sites: ['q', 'v'] there, ['q'] now",
        "seed_everything: 0 there, 1 now",
    ]
    assert differences({}, {"data": {"x": 1}}) == ["data.x: None there, 1 now"]


@pytest.mark.parametrize("key", sorted(FREE_TRAINER_KEYS))
def test_free_trainer_options_may_differ(key):
    assert differences({"trainer": {key: 1}}, {"trainer": {key: 2}}) == []


@pytest.mark.parametrize("key", ["precision", "accumulate_grad_batches", "gradient_clip_val"])
def test_other_trainer_options_may_not(key):
    assert differences({"trainer": {key: 1}}, {"trainer": {key: 2}}) == [f"trainer.{key}: 1 there, 2 now"]


def test_an_option_that_came_later_is_no_difference_where_nobody_gives_it():
    new = {"data": {"init_args": {"folder": "x", "new": 3}}, "model": {"rate": 2.0}}
    old = {"data": {"init_args": {"folder": "x"}}, "model": {}}
    defaults = {"data.init_args.new": 3, "model.rate": 1.0}
    assert differences(old, new, defaults) == ["model.rate: 1.0 there, 2.0 now"]
    assert differences(old, old, defaults) == []


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("model.init_args.optimizer.lr", "optimizer"),
        ("model.init_args.lora.rank", "weights"),
        ("data.init_args.tasks_per_batch", "batches"),
        ("trainer.precision", "precision"),
        ("trainer.gradient_clip_val", "otherwise"),
        ("seed_everything", "seed"),
        ("nothing.known", "other"),
    ],
)
def test_every_refused_option_has_its_reason(key, told):
    assert told in reason(key)


@pytest.mark.parametrize("key", ["num_workers", "cache_dir"])
def test_what_only_changes_the_speed_of_data_may_differ(key):
    for place in ({"init_args": {key: 1}}, {"init_args": {"tasks": {"init_args": {key: 1}}}}):
        assert differences({"data": {}}, {"data": place}) == []


def test_a_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    hold = f"""
import time
from pathlib import Path
from tagi_lightning.cli.runs import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(RunFolderError, match=rf"in use by another process \(process {holder.pid} on "),
        locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_record_counts_starts_and_adds_up_seconds(tmp_path):
    RunRecord(tmp_path, {"stage": "align"}).finish("failed", {"global_step": 3})
    values = read_run(tmp_path)
    assert values.items() >= {"status": "failed", "stage": "align", "starts": 1, "global_step": 3}.items()
    write_json(tmp_path / "run.json", values | {"seconds": 100.0})
    record = RunRecord(tmp_path, {"stage": "align"})
    assert read_run(tmp_path)["status"] == "running"
    record.finish("finished", {})
    assert read_run(tmp_path)["starts"] == 2
    assert read_run(tmp_path)["seconds"] >= 100.0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_no_record_is_empty_and_a_damaged_one_an_error(tmp_path):
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"status": ', encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged"):
        read_run(tmp_path)


def test_the_commit_is_that_of_the_checkout_that_tracks_the_file(tmp_path):
    file = tmp_path / "module.py"
    file.touch()
    assert git_state(file) == {"commit": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert git_state(file) == {"commit": None, "dirty": None}
    subprocess.run([*git, "add", "module.py"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    assert len(git_state(file)["commit"]) == 40
    assert git_state(file)["dirty"] is False
    (tmp_path / "new").touch()
    assert git_state(file)["dirty"] is True


def test_the_environment_names_versions():
    assert environment()["versions"]["torch"] != "not installed"

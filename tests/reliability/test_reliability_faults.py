"""Damaged files, full disks and folders that cannot be written: told plainly, with the last good state intact."""

import os
import resource
import shutil
import subprocess

import pytest
import torch
from commands import weights
from reliability_runs import difference, final_state, last_step, run_alone

from tagi_lightning.storage.checkpoint_files import LAST, PREVIOUS, find_checkpoint, read_checkpoint

pytestmark = pytest.mark.reliability

SHARES = 16


def test_a_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(whole, tmp_path, record, capsys):
    expected, _ = whole("pretrain")
    good = expected / "pretrain" / "checkpoints"
    content = (good / LAST).read_bytes()
    for share in range(SHARES):
        folder = tmp_path / f"cut-{share}"
        shutil.copytree(good, folder)
        (folder / LAST).write_bytes(content[: len(content) * share // SHARES])
        path, step = find_checkpoint(folder, "pretrain")
        assert (path.name, step) == (PREVIOUS, last_step(expected, "pretrain") - 2)
        assert "last.ckpt is damaged" in capsys.readouterr().out
    record("last.ckpt cut off at every 1/16 of its length", SHARES, "refused by name, the one before it used")


def test_a_changed_byte_anywhere_in_the_tensors_is_noticed(whole, tmp_path, record, draw):
    last = whole("pretrain")[0] / "pretrain" / "checkpoints" / LAST
    content = bytearray(last.read_bytes())
    weights = max(torch.load(last, weights_only=True)["state_dict"].values(), key=torch.numel)
    place = bytes(content).index(weights.numpy().tobytes())
    for trial in range(SHARES):
        changed = content.copy()
        changed[place + draw.randrange(weights.nbytes)] ^= 1 << draw.randrange(8)
        path = tmp_path / f"{trial}.ckpt"
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path, "pretrain")
    record("One bit of a checkpoint's weights changed", SHARES, "refused by name")


def test_a_run_goes_on_from_the_checkpoint_before_a_cut_off_one(start, whole, tmp_path, record):
    expected, _ = whole("align")
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = start("align", run)
    shutil.copytree(expected / "align", run / "align")
    shutil.rmtree(run / "align" / "model")
    last = run / "align" / "checkpoints" / LAST
    os.truncate(last, last.stat().st_size // 2)
    assert run_alone(arguments, log) == 0, log.read_text()
    assert f"going on from {last.with_name(PREVIOUS)}" in log.read_text()
    assert difference(final_state(run, "align"), final_state(expected, "align")) is None
    assert difference(weights(run, "align"), weights(expected, "align")) is None
    record("A run with its last checkpoint cut off", 1, "resumed from the one before to the same bits")


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_the_size_of_files_is_told(start, tmp_path, record):
    log = tmp_path / "log"
    arguments = start("align", tmp_path / "run")
    assert run_alone(arguments, log, lambda: limit_files(200_000)) == 1
    assert "last.ckpt could not be written" in log.read_text()
    assert "Traceback" not in log.read_text()
    checkpoints = tmp_path / "run" / "align" / "checkpoints"
    assert list(checkpoints.iterdir()) == []
    record("Files limited in size (RLIMIT_FSIZE)", 1, "told, exit code 1, nothing half-written")


@pytest.fixture
def disk(tmp_path):
    """A disk of 128 MiB; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_once_there_is_room(start, disk, tmp_path, record):
    run, logs = disk / "run", [tmp_path / f"{number}.log" for number in range(3)]
    arguments = start("align", run)
    assert run_alone([*arguments, "--trainer.max_steps=10"], logs[0]) == 0
    before = last_step(run, "align")
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    filler.write_bytes(b"0" * (free - 50_000))
    assert run_alone(arguments, logs[1]) == 1, logs[1].read_text()
    assert "could not be written" in logs[1].read_text()
    assert "Traceback" not in logs[1].read_text()
    assert last_step(run, "align") >= before
    filler.unlink()
    assert run_alone(arguments, logs[2]) == 0, logs[2].read_text()
    record("A full disk (tmpfs)", 1, "told, last.ckpt intact, resumed once there was room")


def test_a_folder_that_cannot_be_written_is_told(start, disk, tmp_path, record):
    run, log = disk / "run", tmp_path / "log"
    arguments = start("align", run)
    assert run_alone([*arguments, "--trainer.max_steps=4"], tmp_path / "first.log") == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert run_alone(arguments, log) == 1
    assert "Read-only file system" in log.read_text()
    assert "Traceback" not in log.read_text()
    record("A run folder that is read-only", 1, "told, exit code 1")

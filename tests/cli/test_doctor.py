import json
import shutil
import subprocess
import sys

import pytest

from tagi_lightning.cli import doctor, main
from tagi_lightning.doctor import versions

SKIP = ["--train", "false"]


@pytest.fixture
def folders(task_set, tmp_path, monkeypatch):
    """A data folder that holds the synthetic task set, and an empty folder for runs, as options."""
    monkeypatch.chdir(tmp_path)  # the working folder's own cache would be told, too
    (tmp_path / "data").mkdir()
    shutil.copytree(task_set, tmp_path / "data" / "synthetic")
    (tmp_path / "runs").mkdir()
    return ["--data", tmp_path / "data", "--runs", tmp_path / "runs"]


def run_doctor(*options):
    """Runs `tagi doctor` in the working folder."""
    return main(["doctor", *map(str, options)])


def findings(capsys, *options):
    """Returns the exit code and the findings by check."""
    capsys.readouterr()
    code = run_doctor("--json", "true", *options)
    told = json.loads(capsys.readouterr().out)
    assert told["well"] == (code == 0)
    return code, {finding["check"]: finding for finding in told["findings"]}


def test_all_is_well_here_and_every_stage_trains(folders, capsys):
    code, found = findings(capsys, *folders)
    assert code == 0
    assert {"python", "versions", "threads", "memory", "disk, runs", "hub cache", "offline"} <= found.keys()
    assert found["training"]["text"].startswith(f"two steps of {', '.join(doctor.STAGES)} in ")
    assert found["data, synthetic"]["text"].startswith("90 of 90 train tasks and 30 of 30 test tasks")


def test_it_prints_a_line_a_check_and_leaves_nothing(folders, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run_doctor(*SKIP, *folders) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warning", "problem") and ": " in line for line in lines)
    states = [line.split()[0] for line in lines]
    assert last == f"0 problems, {states.count('warning')} warnings, {states.count('ok')} ok"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_a_compromised_release_is_told_by_number_and_nothing_is_trained(package, version, capsys, monkeypatch):
    real = versions.installed_version

    def installed(name):
        return version if name == package else real(name)

    monkeypatch.setattr(doctor, "check_versions", lambda: versions.check_versions(installed))
    monkeypatch.setattr(doctor, "compromised", lambda: versions.compromised(installed))
    monkeypatch.setattr(doctor, "train_stages", lambda: pytest.fail("it trains"))
    code, found = findings(capsys)
    assert code == 1
    assert found[package]["state"] == "problem"
    assert f"{version} is a COMPROMISED release" in found[package]["text"]
    assert "change every credential" in found[package]["advice"]
    assert "not tried" in found["training"]["text"]


def test_versions_are_looked_up_before_anything_imports_lightning():
    code = (
        "import sys, tagi_lightning.cli.doctor\nprint({'lightning', 'pytorch_lightning', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_stage_that_does_not_train_is_a_problem_in_its_own_words(folders, capsys, monkeypatch):
    first = doctor.STAGES["pretrain-backbone"]
    teachers = {"class_path": "TeacherTraining", "init_args": {"optimizer": {"name": "adafactor"}}}
    monkeypatch.setattr(doctor, "STAGES", {"pretrain-backbone": first, "teachers": teachers})
    code, found = findings(capsys, *folders)
    assert code == 1
    assert found["training"]["text"] == "two steps of teachers ended with exit code 1"
    assert "teachers train with optimizer.name=adamw, got adafactor" in found["training"]["advice"]


def test_data_that_are_absent_or_damaged_are_counted(folders, tmp_path, capsys):
    tasks = sorted((tmp_path / "data" / "synthetic" / "tasks").glob("*.json"))
    tasks[0].unlink()
    (tmp_path / "data" / "synthetic" / ".cache" / "writing-x").mkdir(parents=True, exist_ok=True)
    code, found = findings(capsys, *SKIP, *folders)
    assert code == 0
    assert found["data, synthetic"]["state"] == "warning"
    assert tasks[0].stem in found["data, synthetic"]["text"]
    assert found["token caches"]["state"] == "warning"
    tasks[1].write_bytes(b"")
    code, found = findings(capsys, *SKIP, *folders, "--corpora", str([str(tmp_path / "nowhere")]))
    assert code == 1
    assert found["data, synthetic"]["state"] == "problem"
    assert tasks[1].name in found["data, synthetic"]["text"]
    assert found["corpora"]["state"] == "problem"


def test_a_data_folder_that_was_named_must_be_there(tmp_path, capsys):
    code, found = findings(capsys, *SKIP, "--data", tmp_path / "none", "--runs", tmp_path)
    assert code == 1
    assert found["data"]["state"] == "problem"

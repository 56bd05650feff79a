import subprocess

import pytest

from tagi_lightning.cli import main
from tagi_lightning.data.sni import read_sni


def test_the_synthetic_set_is_made_once_and_is_readable(tmp_path, capsys):
    folder = tmp_path / "data"
    assert main(["data", "--taskset", "synthetic", "--folder", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    assert len(read_sni(folder).test) > 0
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["data", "--taskset", "synthetic", "--folder", str(folder)]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files


def test_another_seed_does_not_overwrite(tmp_path, capsys):
    folder = tmp_path / "data"
    assert main(["data", "--taskset", "synthetic", "--folder", str(folder)]) == 0
    assert main(["data", "--taskset", "synthetic", "--folder", str(folder), "--seed", "1"]) == 1
    assert "remove it or choose another folder" in capsys.readouterr().err


def test_sni_is_cloned_from_the_repository_given(tmp_path, capsys):
    origin = tmp_path / "origin"
    for path in ("tasks/task1_a.json", "splits/default/train_tasks.txt"):
        (origin / path).parent.mkdir(parents=True, exist_ok=True)
        (origin / path).write_text("x\n", encoding="utf-8")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "tasks"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    arguments = ["--taskset", "sni", "--folder", str(tmp_path / "sni"), "--repository", origin.as_uri()]
    assert main(["data", *arguments]) == 0
    assert (tmp_path / "sni" / "tasks" / "task1_a.json").is_file()
    assert main(["data", *arguments]) == 1
    assert "already there" in capsys.readouterr().err


def test_an_unknown_task_set_lists_the_known(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["data", "--taskset", "glue", "--folder", str(tmp_path)])
    assert error.value.code == 2
    assert "synthetic" in capsys.readouterr().err

from __future__ import annotations

import shutil
import subprocess

import pytest

from tagi_lightning.data.fetch import fetch_sni, fetch_templates
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.sni import read_sni

TASK = '{"Definition": ["Add."], "Categories": ["Arithmetic"], "Instances": [{"input": "1 1", "output": ["2"]}]}'

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def publish(folder, files):
    """Makes a git repository of two commits that holds `files` and returns its address."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (
        ["init", "-q"],
        ["commit", "-qm", "one", "--allow-empty"],
        ["add", "."],
        ["commit", "-qm", "two"],
    ):
        subprocess.run([*git, *arguments], check=True)
    return f"file://{folder}"


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    files = {
        "README.md": "Tasks",
        "eval/predictions.txt": "not wanted",
        "tasks/add.json": TASK,
        "tasks/sum.json": TASK,
        "splits/default/train_tasks.txt": "add\n",
        "splits/default/test_tasks.txt": "sum\n",
    }
    return publish(folder, files)


@pytest.mark.parametrize("filters", ["true", "false"])
def test_tasks_and_splits_of_the_newest_commit_are_fetched(repository, tmp_path, filters):
    published = repository.removeprefix("file://")
    subprocess.run(["git", "-C", published, "config", "uploadpack.allowFilter", filters], check=True)
    destination = tmp_path / "data" / "sni"
    fetch_sni(destination, repository)
    splits = read_sni(destination, report=DataReport("fetched"))
    assert [task.name for task in (*splits.train, *splits.test)] == ["add", "sum"]
    assert not (destination / "eval").exists()
    log = subprocess.run(["git", "-C", destination, "log", "--format=%s"], capture_output=True, text=True, check=True)
    assert log.stdout == "two\n"
    assert list(destination.parent.iterdir()) == [destination]


def test_an_empty_destination_is_filled_and_another_left_alone(repository, tmp_path):
    destination = tmp_path / "sni"
    destination.mkdir()
    fetch_sni(destination, repository)
    (destination / "tasks" / "add.json").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="sni is already there"):
        fetch_sni(destination, repository)
    assert (destination / "tasks" / "add.json").read_text(encoding="utf-8") == "mine"


def test_a_failing_clone_tells_gits_reason_and_leaves_nothing(tmp_path):
    destination = tmp_path / "data" / "sni"
    told = r"`git clone .*absent.* failed with status 128: (.|\n)*fatal(.|\n)*DATA=FOLDER"
    with pytest.raises(DataError, match=told):
        fetch_sni(destination, f"file://{tmp_path}/absent")
    assert list(destination.parent.iterdir()) == []


def test_another_repository_is_refused(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    address = publish(folder, {"tasks/add.json": TASK})
    with pytest.raises(DataError, match="has no tasks/ and splits/default/"):
        fetch_sni(tmp_path / "sni", address)
    assert not (tmp_path / "sni").exists()


def test_absent_git_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="git is not installed"):
        fetch_sni(tmp_path / "sni", "file:///nowhere")


def test_templates_alone_are_fetched(tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    files = {"promptsource/templates/rte/templates.yaml": "templates: {}\n", "promptsource/app.py": "not wanted"}
    destination = tmp_path / "p3_templates"
    fetch_templates(destination, publish(published, files))
    assert [path.relative_to(destination).as_posix() for path in destination.rglob("*.*")] == ["rte/templates.yaml"]


def test_a_repository_without_templates_is_refused(repository, tmp_path):
    with pytest.raises(DataError, match="it is not promptsource"):
        fetch_templates(tmp_path / "p3_templates", repository)
    assert not (tmp_path / "p3_templates").exists()

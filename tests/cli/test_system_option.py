import re

import pytest
import yaml
from commands import ROOT, command, copy_stages, tagi

from tagi_lightning.cli.system import expand_system

DISTILL = "experiments/stages/distill.yaml"


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


def write(folder, **values):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"chain": ["distill"], **values}), encoding="utf-8")
    return str(path)


def test_the_part_of_the_stage_comes_after_the_configurations_and_before_overrides(tmp_path):
    system = write(tmp_path, tagi={"decoder_memory": False})
    words = ["--system", system, f"--config={DISTILL}", "--config", "experiments/sizes/tiny.yaml", "--run", "r"]
    found = expand_system(words)
    assert found[:3] == [f"--config={DISTILL}", "--config", "experiments/sizes/tiny.yaml"]
    assert found[3] == "--config"
    assert yaml.safe_load(found[4]) == {
        "model": {"init_args": {"tagi": {"decoder_memory": False}, "init_from": "none"}}
    }
    assert found[5:] == ["--run", "r"]
    assert expand_system([f"--system={system}", *words[2:]]) == found


def test_an_override_wins_whatever_follows_it(tmp_path):
    words = ["--config", DISTILL, "--system", write(tmp_path), "--run", "r", "--model.init_args.init_from=auto"]
    found = expand_system([*words, "--config", "experiments/sizes/tiny.yaml"])
    assert found[:3] == ["--config", DISTILL, "--config"]
    assert found[4:] == ["--run", "r", "--model.init_args.init_from=auto", "--config", "experiments/sizes/tiny.yaml"]


def test_the_part_follows_the_configuration_of_its_stage_wherever_that_stands(tmp_path):
    words = ["--run", "r", "--trainer.max_steps=3", "--system", write(tmp_path), "--config", DISTILL]
    assert expand_system(words)[:4] == ["--run", "r", "--trainer.max_steps=3", "--config"]
    assert expand_system(words)[4:6] == [DISTILL, "--config"]


def test_without_a_system_nothing_changes():
    words = ["--config", DISTILL, "--run", "r"]
    assert expand_system(words) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", DISTILL, "--system", "experiments/systems/hnt.yaml"], "choose from .*hint"),
        (["--config", "experiments/stages/align.yaml", "--system", "experiments/systems/hint.yaml"], "no stage align"),
        (["--run", "r", "--system", "experiments/systems/hint.yaml"], "needs the stage's configuration"),
        (["--config", DISTILL, "--system"], "needs a value"),
    ],
)
def test_what_cannot_be_applied_is_told(words, message, capsys):
    assert tagi(["fit", *words]) == 1
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert "Traceback" not in told


def test_a_logits_teacher_that_is_another_system_must_be_named(tmp_path):
    system = write(tmp_path, logits_teacher="tk-instruct")
    with pytest.raises(ValueError, match="train that first and give"):
        expand_system(["--config", DISTILL, "--system", system])
    given = ["--config", DISTILL, "--system", system, "--model.init_args.logits_teacher=folder"]
    assert given[-1] in expand_system(given)


def test_a_stage_trains_as_the_system_says(chain, task_set, tmp_path):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone")
    options = ["--model.init_args.init_from=none", "--model.init_args.teachers=none", "--trainer.max_steps=1"]
    system = write(
        tmp_path, tagi={"decoder_memory": False}, distill={"model": {"init_args": {"loss": {"lambda1": 0.5}}}}
    )
    assert tagi(command("distill", run, task_set, *options, "--system", system)) == 0
    config = yaml.safe_load((run / "distill" / "config.yaml").read_text(encoding="utf-8"))
    settings = config["model"]["init_args"]
    assert settings["tagi"]["decoder_memory"] is False
    assert settings["tagi"]["lora"]["rank"] == 16
    assert settings["loss"]["lambda1"] == 0.5
    assert config["trainer"]["max_steps"] == 1


def test_an_option_that_no_stage_has_is_an_error(chain, task_set, tmp_path, capsys):
    system = write(tmp_path, tagi={"decoder_memori": False})
    with pytest.raises(SystemExit) as error:
        tagi(command("distill", chain, task_set, "--system", system))
    assert error.value.code == 2
    assert "decoder_memori" in capsys.readouterr().err

import re

import pytest
from commands import ROOT, STAGES, make, tagi_commands

from tagi_lightning.cli import VERBS

DOCUMENTED = [
    "help",
    "install",
    "demo",
    "data",
    "pretrain-backbone",
    "teachers",
    "pretrain",
    "align",
    "distill",
    "evaluate",
    "all",
    "score",
    "tensorboard",
    "test",
    "check",
    "clean",
]
VARIABLES = ["TASKSET", "DATA", "SETTING", "SIZE", "BACKBONE", "TOKENIZER", "TRAINER", "SEED", "RUN", "ARGS"]


def test_help_is_the_default_and_lists_every_command_and_variable():
    text = make().stdout
    assert text == make("help").stdout
    targets = re.findall(r"^([a-z-]+):.*## (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(DOCUMENTED) <= {name for name, _ in targets}
    for name, explanation in targets:
        assert re.search(rf"^  {name} +{re.escape(explanation)}$", text, re.MULTILINE), name
    assert all(f"{name}=" in text for name in VARIABLES)


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "ddp", "fsdp", "deepspeed"])
@pytest.mark.parametrize("taskset", ["synthetic", "sni", "custom"])
@pytest.mark.parametrize("stage", [*STAGES, "evaluate"])
def test_a_stage_calls_tagi_and_nothing_else_with_files_that_exist(stage, taskset, trainer):
    lines = make("--dry-run", stage, f"TASKSET={taskset}", f"TRAINER={trainer}").stdout.splitlines()
    installation = {
        line for line in make("--dry-run", "install").stdout.splitlines() if "Nothing to be done" not in line
    }
    [line] = [line for line in lines if line not in installation]
    assert line.startswith(f".venv/bin/tagi {'evaluate' if stage == 'evaluate' else 'fit'} ")
    files = [word for word in line.split() if word.endswith(".yaml")]
    assert len(files) >= 4
    assert all((ROOT / file).is_file() for file in files)


def test_defaults_follow_the_task_set():
    [synthetic] = tagi_commands("distill")
    assert "runs/synthetic-tiny-s0" in synthetic
    assert "data/synthetic" in synthetic
    [sni] = tagi_commands("distill", TASKSET="sni", SEED=3)
    assert "runs/sni-base-s3" in sni
    assert "experiments/sizes/base.yaml" in sni


def test_variables_reach_the_command_and_overrides_come_last():
    arguments = "--trainer.max_steps=7 --model.init_args.loss.lambda1=0"
    [command] = tagi_commands("distill", BACKBONE="b", TOKENIZER="t", SETTING="def+2pos", DATA="d", ARGS=arguments)
    assert command[-2:] == arguments.split()
    given = dict(zip(command[1::2], command[2::2], strict=False))
    assert (given["--backbone.name"], given["--tokenizer"]) == ("b", "t")
    assert (given["--setting"], given["--data_folder"]) == ("def+2pos", "d")


def test_all_is_the_chain_in_its_order_and_a_pretrained_backbone_is_not_trained():
    def stages(**variables):
        configs = [" ".join(words) for words in tagi_commands("all", **variables)]
        return [re.search(r"experiments/stages/([a-z-]+)\.yaml", text)[1] for text in configs]

    assert stages() == [*STAGES, "evaluate"]
    assert stages(TASKSET="sni") == [*STAGES[1:], "evaluate"]
    assert stages(BACKBONE="some/t5") == [*STAGES[1:], "evaluate"]


def test_the_demo_makes_the_data_and_runs_the_chain_in_its_own_folder():
    first, *chain = tagi_commands("demo")
    assert first == ["data", "--taskset", "synthetic", "--folder", "data/synthetic"]
    assert len(chain) == len(STAGES) + 1
    assert all("runs/demo" in words for words in chain)
    assert all(words[0] in VERBS for words in chain)


@pytest.mark.parametrize("choice", ["TASKSET=foo", "SIZE=huge", "TRAINER=tpu", "SETTING=def+3"])
def test_an_unknown_choice_is_told_with_what_there_is(choice):
    done = make("--dry-run", "distill", choice, check=False)
    assert done.returncode == 2
    assert f"{choice} is unknown; choose from:" in done.stderr

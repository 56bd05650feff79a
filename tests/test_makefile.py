import re

import pytest
from commands import ROOT, STAGES, make, tagi_commands

from tagi_lightning.cli import VERBS

DOCUMENTED = [
    "help",
    "install",
    "demo",
    "demo-lm",
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


def value(words, option):
    return words[len(words) - 1 - words[::-1].index(option) + 1]


def test_the_demo_of_a_language_model_trains_without_and_with_prefix_and_compares_both():
    commands = tagi_commands("demo-lm")
    assert commands[0] == ["backbone", "--name", "smollm2-135m"]
    lora, scored, prefix, scored_too, compared = commands[-5:]
    assert [words[0] for words in commands[-5:]] == ["fit", "evaluate", "fit", "evaluate", "compare"]
    assert "--model.init_args.tagi.decoder_memory=true" in prefix
    assert not any("decoder_memory" in word for word in lora)
    assert [value(words, "--run") for words in (lora, scored)] == ["runs/demo-lm"] * 2
    assert [value(words, "--run") for words in (prefix, scored_too)] == ["runs/demo-lm-prefix"] * 2
    assert compared[1:] == ["--run", "runs/demo-lm", "--others", "['runs/demo-lm-prefix']"]
    assert "experiments/sizes/smollm2-135m/synthetic/distill.yaml" in lora


def test_the_demo_of_a_language_model_takes_real_tasks_cut_short_and_passes_overrides_on():
    words = {"TASKSET": "sni", "DATA": "d", "RUN": "r", "SETTING": "def", "ARGS": "--trainer.max_steps=2"}
    *_, lora, scored, _, _, compared = tagi_commands("demo-lm", **words)
    assert value(lora, "--setting") == "def"
    assert value(lora, "--data_folder") == "d"
    assert [word for word in lora if "max_steps" in word] == ["--trainer.max_steps=150", "--trainer.max_steps=2"]
    assert "--data.init_args.max_test_instances=3" in scored
    assert compared[1:] == ["--run", "r", "--others", "['r-prefix']"]


@pytest.mark.parametrize("choice", ["TASKSET=foo", "SIZE=huge", "TRAINER=tpu", "SETTING=def+3", "SYSTEM=hnt"])
def test_an_unknown_choice_is_told_with_what_there_is(choice):
    done = make("--dry-run", "distill", choice, check=False)
    assert done.returncode == 2
    assert f"{choice} is unknown; choose from:" in done.stderr


def test_a_system_is_applied_to_one_stage_in_a_run_of_its_own():
    [words] = tagi_commands("distill", SYSTEM="hint")
    assert words[words.index("--system") + 1] == "experiments/systems/hint.yaml"
    assert "runs/synthetic-tiny-hint-s0" in words
    [words] = tagi_commands("evaluate", SYSTEM="hint")
    assert words[words.index("--system") + 1] == "experiments/systems/hint.yaml"
    assert "make reproduce" in make("--dry-run", "all", "SYSTEM=hint", check=False).stderr


def test_a_grid_gets_the_variables_of_the_makefile():
    given = {
        "TABLE": "sni",
        "TASKSET": "sni",
        "SEEDS": "1,2",
        "BACKBONE": "b",
        "SETTING": "def",
        "ROWS": "tagi,TAGI, another task's LoRA",
    }
    [words] = tagi_commands("reproduce", **given, CORPORA="one two", ARGS="--jobs=3")
    assert words[0] == "reproduce"
    options = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
    assert options == {
        "--table": "sni",
        "--taskset": "sni",
        "--size": "base",
        "--seeds": "1,2",
        "--data": "data/sni",
        "--trainer": "cpu",
        "--rows": "tagi,TAGI, another task's LoRA",
        "--settings": "def",
        "--backbone": "b",
        "--corpora": "one,two",
    }
    assert words[-1] == "--jobs=3"
    assert "--settings" not in tagi_commands("reproduce", TABLE="sni")[0]
    assert make("--dry-run", "reproduce", check=False).returncode == 2


def test_a_report_names_its_runs_and_its_folder():
    [words] = tagi_commands("report", RUNS="runs/a,runs/b", TABLE="sni", OUTPUT="o")
    assert words == ["report", "--runs", "runs/a,runs/b", "--output", "o", "--table", "sni", "--taskset", "synthetic"]

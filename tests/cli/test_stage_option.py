import re

import pytest
import yaml
from commands import ROOT, STAGES, STEPS, tagi, tagi_commands

from tagi_lightning.cli import main
from tagi_lightning.cli.experiment_files import builtin_experiments
from tagi_lightning.cli.stage_option import expand_stage
from tagi_lightning.cli.system import expand_system


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


def named(stage, taskset, size, machine="cpu"):
    return ["--stage", stage, "--taskset", taskset, "--size", size, "--machine", machine]


def files(words):
    """Returns the experiment files among the words of a command."""
    return [word for word in words if word.startswith("experiments/")]


@pytest.mark.parametrize(
    ("taskset", "size", "machine"),
    [("synthetic", "tiny", "cpu"), ("sni", "base", "gpu"), ("p3", "large", "ddp"), ("sni", "smollm2-135m", "cpu")],
)
def test_names_become_the_configurations_of_make_in_its_order(taskset, size, machine):
    for stage in (*STAGES, "evaluate"):
        [made] = tagi_commands(stage, TASKSET=taskset, SIZE=size, TRAINER=machine)
        expanded = expand_stage(named(stage, taskset, size, machine))
        assert files(expanded) == files(made)
        assert yaml.safe_load(expanded[1]) == {"data_folder": made[made.index("--data_folder") + 1]}


@pytest.mark.parametrize("taskset", ["synthetic", "p3-synthetic", "sni", "custom"])
def test_what_is_not_named_is_as_in_make(taskset):
    [made] = tagi_commands("evaluate", TASKSET=taskset)
    assert files(expand_stage([f"--taskset={taskset}"], "evaluate")) == files(made)
    [made] = tagi_commands("align")
    assert files(expand_stage(["--stage=align"])) == files(made)


def test_configurations_and_options_that_are_given_besides_come_after():
    others = ["--config", "mine.yaml", "--run", "r", "--trainer.max_steps=3"]
    expanded = expand_stage([*others[:2], *named("distill", "sni", "base"), *others[2:]])
    assert expanded[-len(others) :] == others
    assert set(expanded[: -len(others) : 2]) == {"--config"}


def test_without_a_name_nothing_changes():
    words = ["--config", "experiments/stages/distill.yaml", "--run", "r"]
    assert expand_stage(words) == words
    assert expand_stage(words, "evaluate") == words


def test_evaluate_alone_is_that_of_make_unless_help_is_asked_for():
    [made] = tagi_commands("evaluate")
    assert files(expand_stage(["--run", "r"], "evaluate")) == files(made)
    for asked in (["--help"], ["-h"], ["--config=mine.yaml"]):
        assert expand_stage(asked, "evaluate") == asked


@pytest.mark.parametrize("folder", ["", "experiments"])
def test_the_files_are_those_of_the_package_where_the_present_folder_has_none(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    expanded = expand_system([*expand_stage(named("distill", "sni", "base")), "--system", "tagi-lora"])
    assert expanded[3] == str(builtin_experiments() / "data" / "sni.yaml")
    assert yaml.safe_load(expanded[-1])["model"]["init_args"]["tagi"]["decoder_memory"] is False


def test_a_system_is_named_or_a_file():
    words = expand_stage(named("distill", "sni", "base"))
    by_name = expand_system([*words, "--system", "hint"])
    assert by_name == expand_system([*words, "--system", "experiments/systems/hint.yaml"])


def test_a_stage_that_make_trained_is_the_one_that_is_named(chain, task_set, capsys):
    options = [f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--inspect_every=null"]
    options += ["--run", chain, "--data_folder", task_set, "--config", task_set.with_name("tasks.yaml")]
    assert tagi(["fit", "--stage", "distill", "--taskset", "synthetic", *options]) == 0
    assert "distill: already finished in" in capsys.readouterr().out
    assert tagi(["fit", "--stage", "distill", "--system", "tagi-lora", *options]) == 1
    assert "decoder_memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--stage", "distil"], "stage 'distil' is unknown; choose from align, distill, evaluate, pretrain, "),
        (["fit", *named("distill", "sni-text", "base")], "taskset 'sni-text' is unknown; choose from custom, p3, "),
        (["evaluate", "--size", "huge"], "size 'huge' is unknown; choose from base, large, "),
        (["evaluate", "--machine", "tpu"], "machine 'tpu' is unknown; choose from cpu, cpu-bf16, ddp, "),
        (["fit", "--taskset", "sni"], "--taskset needs --stage beside it; choose from align, "),
        (["fit", "--stage"], "--stage needs a value"),
        (["fit", "--stage", "align", "--system", "hnt"], "there is no system .*choose from .*hint"),
        (["fit", "--run", "r", "--system", "hint"], "needs the stage's configuration: .* or --stage <stage>"),
        (["fit", "--stage", "evaluate", "--run", "r"], "run it with tagi evaluate"),
        (["evaluate", "--stage", "align", "--run", "r"], "run it with tagi fit"),
    ],
)
def test_what_cannot_be_named_is_told_with_what_there_is(words, message, capsys):
    assert main(words) == 1
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert "Traceback" not in told


def test_check_takes_the_names_of_both_verbs_and_tells_a_wrong_one_alone(capsys):
    assert main(["check", "--stage", "distill", "--taskset", "sny"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("problem 1: taskset 'sny' is unknown; choose from custom,")
    assert told.out == "nothing else could be looked at\n1 problems\n"


@pytest.mark.parametrize("verb", ["fit", "evaluate", "check"])
def test_the_help_tells_the_names(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = capsys.readouterr().out
    assert ("--stage NAME" in told) == (verb != "evaluate")
    assert "--taskset NAME --size NAME --machine NAME" in told

import subprocess

import pytest

from tagi_lightning.cli import VERBS, main
from tagi_lightning.cli.completion import parser_of

COMPLETED = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_tagi
printf "%s\n" "${COMPREPLY[@]}"
"""


def complete(script, *words):
    """Returns what bash offers for the last of some words."""
    done = subprocess.run(
        ["bash", "-c", COMPLETED, "bash", str(script), "tagi", *words], capture_output=True, text=True, check=True
    )
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.mark.slow
def test_bash_completes_verbs_options_choices_and_files(tmp_path, capsys):
    assert main(["completion", "--shell", "bash"]) == 0
    script = tmp_path / "tagi.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    assert set(VERBS) <= complete(script, "")
    assert complete(script, "ad") == {"adapt"}
    assert {"--model", "--output", "--instruction"} <= complete(script, "adapt", "--")
    assert "--trainer.max_steps" in complete(script, "fit", "--trainer.max_st")
    assert complete(script, "adapt", "--dtype", "bf") == {"bfloat16"}
    assert complete(script, "evaluate", "--taskset", "sy") == {"synthetic"}
    (tmp_path / "model").mkdir()
    assert any("model" in word for word in complete(script, "adapt", "--model", f"{tmp_path}/mod"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_parser_of_its_options(verb):
    assert [action for action in parser_of(verb)._actions if action.dest != "help"]


def test_an_unknown_shell_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as done:
        main(["completion", "--shell", "powershell"])
    assert done.value.code == 2
    assert "zsh" in capsys.readouterr().err

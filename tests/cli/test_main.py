import subprocess
import sys
import time

import pytest
from commands import ROOT

from tagi_lightning import __version__
from tagi_lightning.cli import VERBS, main
from tagi_lightning.cli.command import DEBUG, finish

LIGHT = """
import sys
from tagi_lightning.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "lightning", "transformers", "jsonargparse"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("option", ["--help", "--version", "ls"])
def test_help_version_and_ls_import_nothing_heavy(option):
    seconds = []
    for _ in range(3):  # the best of three, as other work may share the machine
        start = time.monotonic()
        words = [sys.executable, "-c", LIGHT, option]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.monotonic() - start)
        assert (done.returncode, done.stderr) == (0, "")
    assert min(seconds) < 1


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tagi {__version__}\n"


def test_no_verb_shows_the_help_and_an_unknown_one_what_there_is(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: tagi VERB")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == f"tagi: unknown verb 'train'; choose from {', '.join(VERBS)}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    assert f"tagi {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_told_error_has_a_traceback_under_debug_alone(place, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    words = ["score", "--predictions", str(tmp_path / "absent.jsonl")]
    assert main(words) == 1
    plain = capsys.readouterr().err
    assert plain.startswith("tagi score: ")
    assert "Traceback" not in plain
    monkeypatch.setenv(DEBUG, "")  # so that what main sets is undone
    assert main([*words[:place], "--debug", *words[place:]]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(plain)


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly():
    words = f"(sleep 1; {sys.executable} -m tagi_lightning.cli ls) | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_another_broken_pipe_is_an_error_like_any_other(capfd):
    def write(args):
        raise BrokenPipeError(32, "a worker has gone")

    assert finish("fit", write, []) == 1
    assert capfd.readouterr().err == "tagi fit: [Errno 32] a worker has gone\n"


@pytest.mark.slow
def test_the_command_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tagi_lightning.cli", "compare", "--run", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"tagi compare: nothing was evaluated in {tmp_path}; run: make evaluate RUN={tmp_path}\n"

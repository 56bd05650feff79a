"""The pages of docs/: every command runs here or is marked with what it needs, and the site holds together."""

import contextlib
import re
import shlex
import shutil

import jsonargparse
import pytest
from commands import ROOT, STEPS, task_set
from documented import NEEDS, bash_lines, blocks, dry_run, inline_makes, tagi_calls, without_comment

from tagi_lightning.cli import VERBS, main
from tagi_lightning.cli.stage_option import expand_stage

__all__ = ["task_set"]

DOCS = ROOT / "docs"
TEXTS = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
LINES = [(page, line) for page, text in TEXTS.items() for line in bash_lines(text)]
MARKED = [without_comment(line) for _, line in LINES if NEEDS.search(line)]
RUN_PAGES = sorted({page for page, line in LINES if not NEEDS.search(line)})
PYTHON_PAGES = [page for page, text in TEXTS.items() if blocks(text, "python")]
LIGHTNING = ("fit", "evaluate", "check")
NAMED_FILE = re.compile(r"here `([\w.]+)`:\n\n```json\n(.*?)```", re.DOTALL)


def words_of(line):
    """Returns the words of a command without variables before it; of a SLURM script, those of the make it calls."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "sbatch":
        assert (ROOT / words[1]).is_file()
        words = ["make", *words[2:]]
    return words


@pytest.mark.parametrize("line", MARKED)
def test_a_command_that_needs_more_than_this_is_one_that_exists(line):
    words = words_of(line)
    if words[0] == "make":
        assert tagi_calls(shlex.join(words))
        return
    assert words[0] == ".venv/bin/tagi"
    assert words[1] in VERBS
    if words[1] not in LIGHTNING:
        jsonargparse.capture_parser(lambda: main([words[1]])).parse_args(words[2:])


@pytest.mark.parametrize("line", sorted({line for text in TEXTS.values() for line in inline_makes(text)}))
def test_make_knows_what_the_text_names(line):
    dry_run(line)


@pytest.fixture(scope="module")
def demo(task_set, tmp_path_factory):
    """A folder in which `make demo` was called, on a smaller task set; not to be changed."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    shutil.copytree(task_set, folder / "data" / "synthetic")
    shutil.copytree(task_set / "corpus", folder / "my_text")
    for text in TEXTS.values():
        for name, rows in NAMED_FILE.findall(text):
            (folder / name).write_text(rows, encoding="utf-8")
    with contextlib.chdir(folder):
        run("make demo", task_set)
    return folder


@pytest.fixture
def place(demo, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(demo, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")


def run(line, task_set):
    """Runs a command, in three steps on the small task set where it trains."""
    calls = tagi_calls(line)
    assert calls, f"{line} calls no tagi"
    for words in calls:
        if words[0] in LIGHTNING:
            words = [words[0], *expand_stage(words[1:], "evaluate" if words[0] == "evaluate" else None)]
        if words[0] == "data":  # a whole task set, which must not take the place of the small one
            words[words.index("--folder") + 1] = str(task_set.with_name("whole"))
        if "experiments/data/synthetic-backbone.yaml" in words:
            words += ["--config", str(task_set.with_name("backbone.yaml"))]
        if "experiments/data/synthetic.yaml" in words:  # what is left of a task is held out for the teachers
            words += ["--config", str(task_set.with_name("tasks.yaml")), "--data.init_args.max_train_instances=4"]
        if words[0] in ("fit", "check"):
            words += [f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1"]
        assert main(words) == 0, shlex.join(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_every_other_command_of_a_page_runs(page, place, task_set):
    for line in bash_lines(TEXTS[page]):
        if not NEEDS.search(line):
            run(without_comment(line), task_set)


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_examples_of_a_page_run(page, place):
    names = {}
    for example in blocks(TEXTS[page], "python"):
        exec(example, names)
    assert names["adapter"]

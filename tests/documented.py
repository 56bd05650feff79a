"""The commands and examples that a page of documentation shows."""

import re
import shlex

from commands import ROOT, make

NEEDS = re.compile(r"# needs \S")
"""What marks a command that takes more than the tests have: data, a GPU, the internet."""


def blocks(text, language):
    """Returns the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def bash_lines(text):
    """Returns the commands of the bash blocks with their comments, continued lines as one."""
    joined = "".join(blocks(text, "bash")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def without_comment(line):
    """Returns a command as the shell would read it."""
    return line.split(" # ")[0].strip()


def inline_makes(text):
    """Returns the complete `make` commands in running text."""
    return [line for line in re.findall(r"`(make [a-z][^`]*)`", text) if "..." not in line]


def dry_run(line):
    """Returns what a make command would call; fails where make does not know it, or a configuration is missing."""
    text = make("--dry-run", *shlex.split(line)[1:]).stdout
    for path in re.findall(r"--config (experiments/\S+)", text):
        assert (ROOT / path).is_file(), f"{line}: {path} is not there"
    return text


def tagi_calls(line):
    """Returns the arguments of every `tagi` that a command, of make or of tagi itself, comes to."""
    lines = dry_run(line).splitlines() if line.startswith("make ") else [line]
    return [shlex.split(each)[1:] for each in lines if each.startswith(".venv/bin/tagi ")]

"""A data folder read once: which token caches it led to and what was left out, noted beside the caches.

A note's name is a digest of all that reading depends on: the bytes of the files, the options, and this package's own
data code. A start that finds its note opens the token caches and parses nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.cache_folder import is_whole
from tagi_lightning.data.files import file_digest, replace_text
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.prompts import Form, PromptForm
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Task, TaskSplits
from tagi_lightning.data.token_cache import cache_settings, make_cache, open_cache
from tagi_lightning.data.tokenized import TokenizedTasks

SplitName = Literal["train", "validation", "test"]


def read_key(files: Sequence[Path], *settings: object) -> str:
    """Returns the digest of the files' names and bytes, of `settings`, and of the code that reads.

    Args:
        files: Every file that reading may open.
        settings: All else that decides what is read and made of it, in JSON's types.
    """
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".yaml")]
    paths = [*sorted(files), *sorted(code)]
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(file_digest, paths))
    found = [[str(path) for path in paths], contents, settings]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def load_or_read(
    read: Callable[[DataReport], TaskSplits],
    files: Sequence[Path],
    options: Mapping[str, Any],
    report: DataReport,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    form: Form | None = None,
) -> dict[SplitName, TokenizedTasks]:
    """Returns the tokenised tasks of each split that has any, reading them only where no earlier start has.

    Args:
        read: Reads the tasks.
        files: Every file that `read` may open.
        options: All else that decides what `read` returns, in JSON's types.
        report: Receives what was left out, also where an earlier start found it.
        tokenizer: A fast tokenizer.
        cache_dir: Holds the token caches and the notes.
        form: The prompt form; None for the default one.

    Raises:
        DataError: If `read` does.
    """
    form = form or PromptForm()
    note = cache_dir / f"read-{read_key(files, dict(options), cache_settings(tokenizer, form))}.json"
    found = read_note(note)
    if found is None or not all(is_whole(cache_dir / name) for name in found["caches"].values()):
        own = DataReport(report.source)
        caches = {
            split: make_cache(tasks, tokenizer, cache_dir, form).name for split, tasks in by_split(read(own)).items()
        }
        found = {"caches": caches, "notes": own.notes}
        replace_text(note, json.dumps({**found, "sha256": _note_digest(found)}), shared=True)
    for kind, places in found["notes"].items():
        report.notes[kind] += places
    return {split: open_cache(cache_dir / name) for split, name in found["caches"].items()}


def read_note(path: Path) -> dict[str, Any] | None:
    """Returns what a note tells, None where there is none, or a damaged one, which is told: reading makes it again."""
    if not path.is_file():
        return None
    try:
        found = read_mapping(path)
        if found.pop("sha256", None) != _note_digest(found):
            raise ValueError(f"{path} is not what was written")
    except ValueError as error:
        print(f"{error}; the data are read again", flush=True)
        return None
    return found


def _note_digest(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def by_split(splits: TaskSplits) -> dict[SplitName, Sequence[Task]]:
    """Returns the tasks of each split that has any."""
    named: dict[SplitName, Sequence[Task]] = {
        "train": splits.train,
        "validation": splits.validation,
        "test": splits.test,
    }
    return {name: tasks for name, tasks in named.items() if tasks}

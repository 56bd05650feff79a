"""The token cache: every piece of every prompt tokenised once, as Arrow files that are memory-mapped.

One folder holds one task set under one tokenizer. Its name is a digest of all it depends on; the
length limits are not among that, they are applied when a batch is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets, disable_progress_bars, load_from_disk
from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.cache_folder import write_once
from tagi_lightning.data.progress_bar import progress_bar
from tagi_lightning.data.prompts import Form, PromptForm
from tagi_lightning.data.task import Task
from tagi_lightning.data.tokenized import TokenizedTask, TokenizedTasks

LAYOUT_VERSION = 3
"""Raise it with every change of the files a cache folder holds."""

_ROWS_PER_CHUNK = 4096
_IDS = List(Value("int32"))
_TASK_FEATURES = Features(
    {
        "name": Value("string"),
        "category": Value("string"),
        "definitions": List(_IDS),
        "demonstrations": List(_IDS),
        "count": Value("int64"),
    }
)
_INSTANCE_FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "references": List(Value("string")),
        "text_ids": _IDS,
        "reference_ids": List(_IDS),
        "prompt_ids": _IDS,
        "choices": List(Value("string")),
        "choice_ids": List(_IDS),
        "gold": Value("int64"),
        "text_length": Value("int64"),
        "prompt_length": Value("int64"),
        "reference_length": Value("int64"),
        "target_length": Value("int64"),
    }
)


def tokenizer_definition(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns all that decides how `tokenizer` cuts text, as JSON; not the padding and truncation of its last call."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: value for key, value in definition.items() if key not in ("padding", "truncation")})


def cache_settings(tokenizer: PreTrainedTokenizerFast, form: Form) -> list[Any]:
    """Returns all but the tasks that decides what a token cache holds, for JSON."""
    return [LAYOUT_VERSION, *form.identity(tokenizer), tokenizer_definition(tokenizer)]


def cache_key(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast, form: Form) -> str:
    """Returns the digest a token cache is kept under.

    Args:
        tasks: The tasks to tokenise; every text of theirs counts.
        tokenizer: The tokenizer; its whole definition counts, not where it was loaded from.
        form: The prompt form.
    """
    return tasks_digest(tasks, *cache_settings(tokenizer, form))


def tasks_digest(tasks: Sequence[Task], *settings: object) -> str:
    """Returns a SHA-256 of every text of the tasks, in their order, and of `settings`."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for task in tasks:
        own = [task.name, task.category, task.definitions, [[d.input, d.output] for d in task.demonstrations]]
        rows = [[row.id, row.input, row.references, row.prompt, row.choices, row.gold] for row in task.instances]
        digest.update(json.dumps([own, rows]).encode())
    return digest.hexdigest()


def load_or_tokenize(
    tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast, cache_dir: Path, form: Form | None = None
) -> TokenizedTasks:
    """Returns the tokenised tasks, from their cache folder if it is whole, else tokenising them into it.

    Args:
        tasks: The tasks.
        tokenizer: A fast tokenizer.
        cache_dir: Holds one folder for each task set and tokenizer.
        form: The prompt form; None for the default one.

    Raises:
        ValueError: If there are no tasks.
    """
    return open_cache(make_cache(tasks, tokenizer, cache_dir, form or PromptForm()))


def make_cache(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast, cache_dir: Path, form: Form) -> Path:
    """Tokenises the tasks unless their cache folder is there and whole, and returns that folder; tells a damaged one.

    Raises:
        ValueError: If there are no tasks.
    """
    if not tasks:
        raise ValueError("no tasks to tokenise")
    folder = cache_dir / cache_key(tasks, tokenizer, form)

    def write(new: Path) -> None:
        disable_progress_bars()
        _tokenize_tasks(tasks, tokenizer, form).save_to_disk(str(new / "tasks"))
        _tokenize_instances(tasks, tokenizer, form).save_to_disk(str(new / "instances"))

    return write_once(folder, write, "its tasks are tokenised")


def open_cache(folder: Path) -> TokenizedTasks:
    """Returns the tokenised tasks of a cache folder."""
    tasks, start = [], 0
    for row in load_from_disk(str(folder / "tasks")):
        definitions, demonstrations = tuple(row["definitions"]), tuple(row["demonstrations"])
        tasks.append(TokenizedTask(row["name"], row["category"], definitions, demonstrations, start, row["count"]))
        start += row["count"]
    return TokenizedTasks(tasks, load_from_disk(str(folder / "instances")))


def _tokenize_tasks(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast, form: Form) -> Dataset:
    shown = [[form.demonstration(number, each) for number, each in enumerate(task.demonstrations, 1)] for task in tasks]
    columns = {
        "name": [task.name for task in tasks],
        "category": [task.category for task in tasks],
        "definitions": [form.tokenize(tokenizer, list(map(form.definition, task.definitions))) for task in tasks],
        "demonstrations": [form.tokenize(tokenizer, texts) for texts in shown],
        "count": [len(task.instances) for task in tasks],
    }
    return Dataset.from_dict(columns, _TASK_FEATURES)


def _tokenize_instances(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast, form: Form) -> Dataset:
    instances = [instance for task in tasks for instance in task.instances]
    chunks = []
    starts = range(0, len(instances), _ROWS_PER_CHUNK)
    for start in progress_bar(starts, f"tokenising {len(tasks)} tasks", "chunk"):
        chunk = instances[start : start + _ROWS_PER_CHUNK]
        text_ids = form.tokenize(tokenizer, [form.input(instance.input) for instance in chunk])
        prompt_ids = form.tokenize(tokenizer, [instance.prompt for instance in chunk])
        targets = [form.target(text) for each in chunk for text in (*each.references, *each.choices)]
        outputs = iter(form.tokenize(tokenizer, targets))
        target_ids = [[next(outputs) for _ in (*each.references, *each.choices)] for each in chunk]
        counts = [len(instance.references) for instance in chunk]
        reference_ids = [ids[:count] for ids, count in zip(target_ids, counts, strict=True)]
        columns = {
            "id": [instance.id for instance in chunk],
            "text": [instance.input for instance in chunk],
            "references": [list(instance.references) for instance in chunk],
            "text_ids": text_ids,
            "reference_ids": reference_ids,
            "prompt_ids": prompt_ids,
            "choices": [list(instance.choices) for instance in chunk],
            "choice_ids": [ids[count:] for ids, count in zip(target_ids, counts, strict=True)],
            "gold": [-1 if instance.gold is None else instance.gold for instance in chunk],
            "text_length": [len(ids) for ids in text_ids],
            "prompt_length": [len(ids) for ids in prompt_ids],
            "reference_length": [round(fmean(map(len, ids))) for ids in reference_ids],
            "target_length": [max(map(len, each)) for each in target_ids],
        }
        chunks.append(Dataset.from_dict(columns, _INSTANCE_FEATURES))
    return concatenate_datasets(chunks)

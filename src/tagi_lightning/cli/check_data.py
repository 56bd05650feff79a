"""The data of a run, read and checked without writing beside it: all tasks, and of each a few instances tokenised."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np

from data_modules import BackboneDataModule, InstructionDataModule, PlainTextDataModule, SyntheticDataModule
from tagi_lightning.cli.check_options import NO_TOKENIZER, Problems
from tagi_lightning.data.reading import by_split
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.synthetic import write_synthetic
from tagi_lightning.data.task import Task
from tagi_lightning.data.text import corpus_files, read_documents
from tagi_lightning.data.token_cache import load_or_tokenize
from tagi_lightning.data.tokenized import TokenizedTasks

INSTANCES, DOCUMENTS = 4, 200
"""Instances of each task, and documents of each file of text, that are tokenised."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the parts of an example; of plain text, `text` alone counts."""

    instruction: int = 0
    input: int = 0
    output: int = 0
    text: int = 0


@dataclass(frozen=True)
class Sample:
    """What the data look like.

    Attributes:
        mean: Mean lengths.
        longest: Greatest lengths.
        counts: Tasks by split, or sequences of text.
        notes: What was left out of the data folder.
        test_instances: Instances of the test tasks.
    """

    mean: Lengths
    longest: Lengths
    counts: Mapping[str, int]
    notes: str = ""
    test_instances: int = 0


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Drops what is printed inside the block: lines about the sample, and bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def check_data(data: L.LightningDataModule, scratch: Path, problems: Problems) -> Sample | None:
    """Reads the data; afterwards the module's batches are of a sample, and no cache is read or written.

    Args:
        data: The data module.
        scratch: A folder for what is tokenised.
        problems: Receives what is wrong.

    Returns:
        What the data look like; None where they cannot be read.
    """
    write_absent(data, scratch)
    before = len(problems)
    if isinstance(data, InstructionDataModule):
        sample = check_tasks(data, scratch, problems)
    elif isinstance(data, BackboneDataModule) and data.tasks is not None:
        sample = check_tasks(data.tasks, scratch, problems)
        check_text(data, scratch, problems)
    elif isinstance(data, PlainTextDataModule):
        sample = check_text(data, scratch, problems)
    return sample if len(problems) == before else None


def write_absent(data: L.LightningDataModule, scratch: Path) -> None:
    """Writes a synthetic task set that a run would make at its start, to `scratch`, and lets the module read it."""
    tasks = data.tasks if isinstance(data, BackboneDataModule) else data
    if not isinstance(tasks, SyntheticDataModule) or (tasks.folder.exists() and any(tasks.folder.iterdir())):
        return
    old, new = tasks.folder, scratch / "synthetic"
    write_synthetic(new, tasks.synthetic)

    def moved(path: str | Path) -> Path:
        return new / Path(path).relative_to(old) if Path(path).is_relative_to(old) else Path(path)

    tasks.folder, tasks.tokenizer_name = new, str(moved(tasks.tokenizer_name))
    if isinstance(data, PlainTextDataModule):
        data.corpora, data.tokenizer_name = [moved(path) for path in data.corpora], str(moved(data.tokenizer_name))


def has_tokenizer(data: InstructionDataModule | PlainTextDataModule, problems: Problems) -> bool:
    """Loads the tokenizer, and tells where it does not load; one that is known to be absent was told before."""
    if data.tokenizer_name == NO_TOKENIZER:
        return False
    before = len(problems)
    with problems.collected():
        _ = data.tokenizer
    return len(problems) == before


def check_tasks(data: InstructionDataModule, scratch: Path, problems: Problems) -> Sample | None:
    """Reads all tasks, and tokenises a few instances of each."""
    report, splits = DataReport(str(data.folder)), None
    with problems.collected():
        splits = data.splits = data.read(report)
    if not has_tokenizer(data, problems) or splits is None:
        return None
    if not splits.train:
        problems.tell(f"{data.folder} gives no training task; with the present options all are test tasks")
        return None
    data.cache_dir, data.num_workers = scratch / "cache", 0
    with problems.collected(), hidden():
        data.tasks = {
            split: load_or_tokenize(cut(tasks), data.tokenizer, data.cache_dir, data.form)
            for split, tasks in by_split(splits).items()
        }
        data.prepare_data()
    test_instances = sum(len(task.instances) for task in splits.test)
    counts = {f"{split} tasks": len(tasks) for split, tasks in by_split(splits).items()}
    mean, longest = task_lengths(data, data.tasks["train"])
    return Sample(mean, longest, counts, report.summary(), test_instances)


def cut(tasks: Sequence[Task]) -> list[Task]:
    """Returns tasks with their first few instances."""
    return [replace(task, instances=task.instances[:INSTANCES]) for task in tasks]


def task_lengths(data: InstructionDataModule, tasks: TokenizedTasks) -> tuple[Lengths, Lengths]:
    """Returns mean and greatest lengths of instructions, inputs and outputs, as the limits leave them."""
    inside, outside = data.max_input_length, data.max_output_length
    shown = data.assembler.max_demonstrations
    instructions = [len(task.definitions[0]) + sum(map(len, task.demonstrations[:shown])) for task in tasks.tasks]
    measured = [
        np.minimum(instructions, inside),
        np.minimum(np.concatenate(tasks.text_lengths()), inside),
        np.minimum(tasks.target_lengths(), outside),
    ]
    mean, longest = ([max(1, round(float(f(lengths)))) for lengths in measured] for f in (np.mean, np.max))
    return Lengths(*mean), Lengths(*longest)


def check_text(data: PlainTextDataModule, scratch: Path, problems: Problems) -> Sample | None:
    """Reads the first documents of every file, and cuts them into sequences."""
    sample = scratch / "documents.jsonl"
    found = 0
    with sample.open("w", encoding="utf-8") as stream, problems.collected():
        for file in corpus_files(data.corpora):
            with problems.collected():
                for text in itertools.islice(read_documents(file, data.document_unit), DOCUMENTS):
                    stream.write(json.dumps({"text": text}) + "\n")
                    found += 1
    if not has_tokenizer(data, problems) or not found:
        return None
    data.corpora, data.cache_dir, data.num_workers = [sample], scratch / "cache", 0
    with problems.collected(), hidden():
        data.setup("fit")
        lengths = data.sequences[0].lengths
        counts = {"sequences of the first documents": len(lengths)}
        return Sample(Lengths(text=round(lengths.mean())), Lengths(text=int(lengths.max())), counts)
    return None

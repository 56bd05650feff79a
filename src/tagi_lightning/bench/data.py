"""What a second start costs, and how much of training batches is padding.

Both run on Super-NaturalInstructions where TAGI_DATA names a folder that holds sni/ and TAGI_TOKENIZER a tokenizer;
otherwise on generated tasks of its lengths.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tagi_lightning.bench.measure import Result, summarize
from tagi_lightning.data.collate import TaskCollator
from tagi_lightning.data.epochs import Batch
from tagi_lightning.data.prompts import PromptAssembler, PromptForm
from tagi_lightning.data.reading import load_or_read
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sampler import TaskBatchSampler, TaskLengths, task_lengths
from tagi_lightning.data.sni import read_sni, sni_files
from tagi_lightning.data.synthetic_operations import SUBJECTS
from tagi_lightning.data.task import DEMONSTRATIONS, SETTINGS, Demonstration, Setting
from tagi_lightning.data.tokenized import TokenizedTasks
from tagi_lightning.data.vocabulary import train_vocabulary

TASKS_PER_BATCH, INSTANCES_PER_TASK, POOL_BATCHES = 4, 4, 100

INSTRUCTION_LOG = {"def": (4.36, 0.72), "def+2pos": (5.10, 0.78)}
INPUT_LOG, INPUT_LOG_WITHIN = (3.81, 0.85), 0.32
TARGET_LOG, TARGET_LOG_WITHIN = (1.54, 0.92), 0.23
"""Mean and deviation of log tokens over 478 training tasks of SNI, and the deviation within one task."""

GENERATED = {"tiny": (16, 12)}
"""Generated tasks and instances of each by size; the other sizes have as many as SNI."""
SNI_SIZE = (478, 100)


def drawn_lengths(tasks: int, instances: int, setting: str, seed: int = 0) -> list[TaskLengths]:
    """Returns lengths of tasks and instances drawn log-normally around those of SNI's training tasks."""
    draw = np.random.default_rng(seed)

    def tokens(mean: float, deviation: float, least: int, most: int, count: int = 1) -> NDArray[np.int64]:
        return draw.lognormal(mean, deviation, count).clip(least, most).round().astype(np.int64)

    return [
        TaskLengths(
            name=f"task{number:03d}",
            instruction=int(tokens(*INSTRUCTION_LOG[setting], 8, 1024)[0]),
            inputs=tokens(draw.normal(*INPUT_LOG), INPUT_LOG_WITHIN, 5, 1024, instances),
            targets=tokens(draw.normal(*TARGET_LOG), TARGET_LOG_WITHIN, 2, 128, instances),
        )
        for number in range(tasks)
    ]


def padding_shares(tasks: Sequence[TaskLengths], batches: Sequence[Batch]) -> dict[str, float]:
    """Returns the padding share of the instructions, inputs and targets of `batches`, and of inputs and targets."""
    tokens, positions = np.zeros(3), np.zeros(3)
    for batch in batches:
        rows = (
            [tasks[number].instruction for number in {index.task for index in batch}],
            [tasks[index.task].inputs[index.instance] for index in batch],
            [tasks[index.task].targets[index.instance] for index in batch],
        )
        tokens += [sum(lengths) for lengths in rows]
        positions += [max(lengths) * len(lengths) for lengths in rows]
    instruction, inputs, targets = 1 - tokens / positions
    both = 1 - tokens[1:].sum() / positions[1:].sum()
    return {"instruction": instruction, "input": inputs, "target": targets, "input_target": float(both)}


@dataclass(frozen=True)
class Source:
    """Tasks in SNI's schema, and what tokenises them.

    Attributes:
        name: What they are, for the record.
        folder: The task folder.
        tokenizer: The tokenizer's folder.
    """

    name: str
    folder: Path
    tokenizer: str

    @classmethod
    def real(cls) -> Source | None:
        """Returns SNI where the environment names it, else None."""
        data, tokenizer = os.environ.get("TAGI_DATA"), os.environ.get("TAGI_TOKENIZER")
        return cls("Super-NaturalInstructions", Path(data, "sni"), tokenizer) if data and tokenizer else None

    @classmethod
    def generated(cls, folder: Path, size: str) -> Source:
        """Writes tasks of random words in drawn lengths, and a vocabulary of these words."""
        tasks, instances = GENERATED.get(size, SNI_SIZE)
        draw = random.Random(0)
        words = sorted(chain(*SUBJECTS.values()))

        def text(length: int) -> str:
            return " ".join(draw.choices(words, k=length))

        drawn = drawn_lengths(tasks, instances, "def")
        for lengths in drawn:
            rows = zip(lengths.inputs, lengths.targets, strict=True)
            document = {
                "Definition": [text(lengths.instruction)],
                "Positive Examples": [{"input": text(int(lengths.inputs[0])), "output": text(2)} for _ in range(2)],
                "Instances": [{"input": text(int(read)), "output": [text(int(write))]} for read, write in rows],
            }
            _write(folder / "tasks" / f"{lengths.name}.json", json.dumps(document))
        for split, listed in (("train", drawn[tasks // 6 :]), ("test", drawn[: tasks // 6])):
            _write(folder / "splits" / "default" / f"{split}_tasks.txt", "\n".join(each.name for each in listed))
        form = PromptForm()
        around = form.definition("") + form.demonstration(1, Demonstration("", "")) + form.connection + form.cue
        train_vocabulary([around] * 3, folder / "tokenizer", vocab_size=400, words=words)
        return cls(f"{tasks} generated tasks of {instances} instances", folder, str(folder / "tokenizer"))

    def start(self, cache_dir: Path, demonstrations: int = 0) -> tuple[TokenizedTasks, TaskCollator]:
        """Returns the tokenised training tasks and what makes batches of them, as a data module does."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(f"{self.tokenizer} is no fast tokenizer: give one with a tokenizer.json")
        read = partial(read_sni, self.folder, allow_missing=True)
        report = DataReport(str(self.folder))
        splits = load_or_read(
            lambda found: read(report=found), sni_files(self.folder), {}, report, tokenizer, cache_dir
        )
        categories = tuple(sorted({task.category for task in splits["train"].tasks}))
        assembler = PromptAssembler.from_tokenizer(tokenizer, demonstrations)
        return splits["train"], TaskCollator(assembler, categories, tokenizer.pad_token_id)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _seconds_to_tokens_and_batch(source: Source, cache_dir: Path) -> tuple[float, float]:
    """Returns the seconds from nothing to open token caches, and to the first training batch."""
    begun = time.perf_counter()
    tasks, collator = source.start(cache_dir)
    opened = time.perf_counter()
    sampler = TaskBatchSampler(task_lengths(tasks, collator.assembler), TASKS_PER_BATCH, INSTANCES_PER_TASK, seed=0)
    collator(tasks.__getitems__(next(iter(sampler))))
    return opened - begun, time.perf_counter() - begun


def tokenise(size: str, repeats: int) -> list[Result]:
    """A start that finds its token cache against one that makes it; the files are in the page cache both times.

    Timed is what a data module does: load the tokenizer, read the folder or recognise it, tokenise or open the cache;
    and then what else the first batch takes: lengths, plan, padding.
    """
    starts = []
    with tempfile.TemporaryDirectory() as name:
        source = Source.real() or Source.generated(Path(name, "data"), size)
        for repeat in range(repeats):
            cache = Path(name, f"cache{repeat}")
            starts.append([_seconds_to_tokens_and_batch(source, cache) for _ in ("first", "second")])
            shutil.rmtree(cache)
    results = []
    for place, (case, what, at_most) in enumerate(
        [("tokenise", "token caches open", 0.05), ("first_batch", "first training batch", None)]
    ):
        pairs = [(first[place], second[place]) for first, second in starts]
        seconds = {"first": median(first for first, _ in pairs), "second": median(second for _, second in pairs)}
        ratios = [second / first for first, second in pairs]
        compares = f"from nothing to {what}: second start / first"
        results.append(summarize(case, compares, ratios, at_most, data=source.name, seconds=seconds))
    return results


def padding(size: str, repeats: int) -> list[Result]:
    """Padding in batches of 4 tasks × 4 instances out of a pool of 100: a share, with its spread over epochs."""
    results = []
    for setting in SETTINGS:
        lengths, origin = _training_lengths(size, setting)
        sampler = TaskBatchSampler(lengths, TASKS_PER_BATCH, INSTANCES_PER_TASK, 0, POOL_BATCHES)
        shares = [padding_shares(lengths, sampler.plan(epoch)) for epoch in range(repeats)]
        bounds = {"input": 0.06, "input_target": 0.12} if setting == "def" else {}
        for part in shares[0]:
            compares = f"padding / positions of {part.replace('_', ' and ')} rows"
            found = [share[part] for share in shares]
            results.append(summarize(f"padding_{part}_{setting}", compares, found, bounds.get(part), data=origin))
    return results


def _training_lengths(size: str, setting: Setting) -> tuple[list[TaskLengths], str]:
    """Returns the lengths of the training tasks, and where they are from."""
    source = Source.real()
    if source is None:
        return drawn_lengths(*GENERATED.get(size, SNI_SIZE), setting), "lengths drawn as SNI's are distributed"
    with tempfile.TemporaryDirectory() as cache:
        tasks, collator = source.start(Path(cache), DEMONSTRATIONS[setting])
        return task_lengths(tasks, collator.assembler), source.name

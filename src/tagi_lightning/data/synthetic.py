"""A synthetic task set in the Super-NaturalInstructions schema: operations × subjects on short lists of words.

An unseen task is a combination of an operation and a subject that no training task has; either alone is
seen with other partners. All tasks draw their inputs from one distribution, so the input does not give the
task away and the answer cannot be had without the instruction.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.synthetic_operations import OPERATIONS, SUBJECTS, Operation
from tagi_lightning.data.vocabulary import train_vocabulary

GENERATOR_VERSION = 1
"""Changes whenever the same configuration would give other files."""

RECORD = "synthetic.json"
"""File that names the configuration a folder was written from."""

WORDS_PER_LIST = (3, 5)
VOCABULARY_SIZE = 400
EXAMPLES_PER_DOCUMENT = 8


@dataclass(frozen=True)
class SyntheticConfig:
    """What to write.

    Attributes:
        seed: Seed of the held-out combinations and of every instance.
        train_instances: Instances of each training task.
        test_instances: Instances of each held-out task.
        demonstrations: Positive examples of each task, at least 2.
        held_out: Share of each operation's subjects that stand in test tasks only, between 0 and 1.
        documents_per_task: Documents of each training task in the plain-text corpus.
    """

    seed: int = 0
    train_instances: int = 300
    test_instances: int = 100
    demonstrations: int = 2
    held_out: float = 0.25
    documents_per_task: int = 20

    def __post_init__(self) -> None:
        check_range({"held_out": self.held_out}, above=0, below=1)
        check_range({"demonstrations": self.demonstrations}, least=2)
        counts = ("train_instances", "test_instances", "documents_per_task")
        check_range({name: getattr(self, name) for name in counts}, least=1)


@dataclass(frozen=True, slots=True)
class SyntheticTask:
    """One combination of an operation and a subject.

    Attributes:
        name: File name without suffix.
        operation: What to do.
        subject: Which words to do it with.
        held_out: Whether it is a test task.
    """

    name: str
    operation: Operation
    subject: str
    held_out: bool

    def definitions(self, seed: int) -> list[str]:
        """Returns the operation's phrasings about this subject, in an order drawn by (seed, task)."""
        phrasings = [phrasing.format(subject=self.subject) for phrasing in self.operation.phrasings]
        random.Random(f"{seed}/{self.name}/definitions").shuffle(phrasings)
        return phrasings

    def examples(self, stream: str) -> Iterator[tuple[str, str]]:
        """Yields distinct (input, output) pairs without end, a pure function of `stream` and the task."""
        rng = random.Random(f"{stream}/{self.name}")
        seen = set()
        while True:
            words = _draw_words(rng, self.subject)
            answer = self.operation.apply(words, self.subject)
            text = " ".join(words)
            if answer and text not in seen:
                seen.add(text)
                yield text, " ".join(answer)


def _draw_words(rng: random.Random, subject: str) -> list[str]:
    """Draws distinct words of `subject` and of one or two other subjects, each present, in random order."""
    length = rng.randint(*WORDS_PER_LIST)
    others = [name for name in SUBJECTS if name != subject]
    present = [subject, *rng.sample(others, rng.randint(1, 2))]
    owners = present + rng.choices(present, k=length - len(present))
    words = [word for name in present for word in rng.sample(SUBJECTS[name], owners.count(name))]
    rng.shuffle(words)
    return words


def synthetic_tasks(seed: int, held_out: float) -> list[SyntheticTask]:
    """Returns every combination of operation and subject, a share of each operation's subjects held out.

    Args:
        seed: Seed of the order that decides which combinations are held out.
        held_out: Share of the subjects held out for each operation.
    """
    rng = random.Random(f"{seed}/held-out")
    rows = rng.sample(range(len(OPERATIONS)), len(OPERATIONS))
    columns = rng.sample(range(len(SUBJECTS)), len(SUBJECTS))
    tasks: list[SyntheticTask] = []
    for operation, row in zip(OPERATIONS, rows, strict=True):
        for subject, column in zip(SUBJECTS, columns, strict=True):
            # Diagonals spread the held-out cells evenly over operations and subjects.
            diagonal = (row + column) % len(SUBJECTS)
            is_held_out = int((diagonal + 1) * held_out) > int(diagonal * held_out)
            name = f"task{len(tasks) + 1:03d}_{operation.name}_{subject}"
            tasks.append(SyntheticTask(name, operation, subject, is_held_out))
    return tasks


def _task_file(task: SyntheticTask, config: SyntheticConfig) -> dict[str, Any]:
    """Returns one task in the official schema."""
    stream = task.examples(f"{config.seed}/instances")
    demonstrations = [next(stream) for _ in range(config.demonstrations)]
    count = config.test_instances if task.held_out else config.train_instances
    instances = [next(stream) for _ in range(count)]
    return {
        "Contributors": ["tagi-lightning"],
        "Source": ["synthetic"],
        "URL": [],
        "Categories": [task.operation.name],
        "Reasoning": [],
        "Definition": task.definitions(config.seed),
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": [task.subject],
        "Positive Examples": [
            {"input": text, "output": answer, "explanation": f"the answer is {answer}"}
            for text, answer in demonstrations
        ],
        "Negative Examples": [],
        "Instances": [
            {"id": f"{task.name}-{index}", "input": text, "output": [answer]}
            for index, (text, answer) in enumerate(instances)
        ],
        "Instance License": ["Apache 2.0"],
    }


def _documents(task: SyntheticTask, config: SyntheticConfig) -> Iterator[str]:
    """Yields one training task's documents: a definition and worked examples in a row."""
    definitions = task.definitions(config.seed)
    stream = task.examples(f"{config.seed}/corpus")
    for index in range(config.documents_per_task):
        parts = [f"Definition: {definitions[index % len(definitions)]}."]
        for _ in range(EXAMPLES_PER_DOCUMENT):
            text, answer = next(stream)
            parts.append(f"Input: {text}. Output: {answer}.")
        yield " ".join(parts)


def _prompt_words(tasks: Sequence[SyntheticTask]) -> Iterator[str]:
    """Yields text with every word of the subjects, definitions and prompt pieces, for the vocabulary."""
    for words in SUBJECTS.values():
        yield " ".join(words)
    for task in tasks:
        yield from (phrasing.format(subject=task.subject) for phrasing in task.operation.phrasings)
    for number in range(1, 10):
        yield f"Definition: Positive Example {number} - Input: Output: Now complete the following example -"


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a file line by line, and the folders above it where they are absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_all(folder: Path, config: SyntheticConfig, record: str) -> None:
    """Writes tasks, split lists, corpus, tokenizer and record into the empty `folder`."""
    tasks = synthetic_tasks(config.seed, config.held_out)
    for task in tasks:
        text = json.dumps(_task_file(task, config), indent=1)
        write_lines(folder / "tasks" / f"{task.name}.json", [text])
    train = [task for task in tasks if not task.held_out]
    write_lines(folder / "splits/default/train_tasks.txt", [task.name for task in train])
    write_lines(folder / "splits/default/test_tasks.txt", [task.name for task in tasks if task.held_out])
    documents = [document for task in train for document in _documents(task, config)]
    random.Random(f"{config.seed}/corpus").shuffle(documents)
    # A blank line ends a document.
    write_lines(folder / "corpus/train.txt", [f"{document}\n" for document in documents])
    texts = [*documents, *_prompt_words(tasks)]
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z0-9]+", text)})
    train_vocabulary(texts, folder / "tokenizer", vocab_size=VOCABULARY_SIZE, words=words)
    write_lines(folder / RECORD, [record])


def write_synthetic(folder: Path, config: SyntheticConfig) -> None:
    """Writes the synthetic task set, unless `folder` already holds it.

    The folder gets `tasks/*.json`, `splits/default/{train,test}_tasks.txt`, `corpus/train.txt` (plain text of
    training tasks only), `tokenizer/` and `synthetic.json` with the configuration.

    Args:
        folder: Where to write; absent, empty, or written before with the same configuration.
        config: What to write.

    Raises:
        FileExistsError: If `folder` holds anything else.
    """
    record = json.dumps({"version": GENERATOR_VERSION, "config": asdict(config)}, indent=1)
    write_generated(folder, record, lambda new: _write_all(new, config, record))


def write_generated(folder: Path, record: str, write: Callable[[Path], None]) -> None:
    """Writes a folder, whole or not at all, unless it is there with the same record.

    Args:
        folder: Where to write; absent, empty, or written before with the same record.
        record: Text of its synthetic.json.
        write: Fills an empty folder, record included.

    Raises:
        FileExistsError: If `folder` holds anything else.
    """
    if folder.exists() and any(folder.iterdir()):
        found = folder / RECORD
        if found.is_file() and found.read_text(encoding="utf-8").strip() == record:
            return
        raise FileExistsError(
            f"{folder} is not empty and was not written with {' '.join(record.split())} (see {RECORD}): remove it or "
            "choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as parent:
        temporary = Path(parent) / "new"
        temporary.mkdir()
        write(temporary)
        temporary.rename(folder)

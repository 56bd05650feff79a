"""A generated task set in P3's shape: questions about lists of words, each asked by promptsource-like templates.

Three training data sets and two test data sets share one kind of row and one question: which of the listed words is the
first, or the last, of some subject? The listed words are the answer choices. Test templates ask combinations of end
and subject that no training template asks, on lists that mix other subjects; either alone is seen in training.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.synthetic import RECORD, VOCABULARY_SIZE, write_generated, write_lines
from tagi_lightning.data.synthetic_operations import OPERATIONS, SUBJECTS
from tagi_lightning.data.vocabulary import train_vocabulary

GENERATOR_VERSION = 1
"""Changes whenever the same configuration would give other files."""

THEMES: dict[str, tuple[str, ...]] = {
    "living": ("animal", "bird", "tree", "fruit"),
    "made": ("tool", "garment", "instrument", "vehicle"),
    "around": ("colour", "metal", "drink", "sport"),
}
"""Training data sets and the subjects of their lists."""

ENDS = {operation.name: operation for operation in OPERATIONS if operation.name in ("first", "last")}
"""Questions. Each has a test data set, which asks it of a subject of each theme that training does not ask it of."""

WORDS_PER_SUBJECT = 2
EXAMPLES_PER_DOCUMENT = 6
CHOICES = "{{ list | join('|||') }}"


@dataclass(frozen=True)
class SyntheticP3Config:
    """What to write.

    Attributes:
        seed: Seed of every row.
        train_rows: Rows of each training data set.
        shot_rows: Training rows of each test data set, for demonstrations.
        test_rows: Rows that each test data set is evaluated on.
        documents_per_template: Documents of each training template in the plain-text corpus.
    """

    seed: int = 0
    train_rows: int = 320
    shot_rows: int = 40
    test_rows: int = 50
    documents_per_template: int = 20

    def __post_init__(self) -> None:
        counts = ("train_rows", "shot_rows", "test_rows", "documents_per_template")
        check_range({name: getattr(self, name) for name in counts}, least=1)


@dataclass(frozen=True, slots=True)
class SyntheticP3Set:
    """A data set.

    Attributes:
        name: Its name.
        subjects: Subjects of its lists.
        asked: What its templates ask for: end and subject.
    """

    name: str
    subjects: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]

    def templates(self) -> dict[str, str]:
        """Returns the Jinja text of each template by its name."""
        return {
            f"{end}_{subject}_{number}": f"{{{{ words }}}}\n{phrasing.format(subject=subject)} ||| "
            f"{{{{ answers['{end} {subject}'] }}}}"
            for end, subject in self.asked
            for number, phrasing in enumerate(ENDS[end].phrasings, start=1)
        }

    def rows(self, stream: str) -> Iterator[dict[str, Any]]:
        """Yields distinct rows without end, a pure function of `stream` and the name."""
        rng, seen = random.Random(f"{stream}/{self.name}"), set()
        while True:
            words = [word for subject in self.subjects for word in rng.sample(SUBJECTS[subject], WORDS_PER_SUBJECT)]
            rng.shuffle(words)
            if (text := " ".join(words)) not in seen:
                seen.add(text)
                answers = {f"{end} {name}": ENDS[end].apply(words, name)[0] for end in ENDS for name in self.subjects}
                yield {"words": text, "list": words, "answers": answers}


def synthetic_p3_sets() -> tuple[list[SyntheticP3Set], list[SyntheticP3Set]]:
    """Returns the training data sets and the test data sets."""
    unseen = {end: tuple(subjects[place] for subjects in THEMES.values()) for place, end in enumerate(ENDS)}
    train = [
        SyntheticP3Set(
            name,
            subjects,
            tuple((end, subject) for end in ENDS for subject in subjects if subject not in unseen[end]),
        )
        for name, subjects in THEMES.items()
    ]
    # a fourth subject makes test lists as long as training lists
    test = [
        SyntheticP3Set(f"the_{end}", (*subjects, "fruit"), tuple((end, subject) for subject in subjects))
        for end, subjects in unseen.items()
    ]
    return train, test


def write_synthetic_p3(folder: Path, config: SyntheticP3Config) -> None:
    """Writes the task set, unless `folder` already holds it.

    The folder gets `lists.yaml`, rows as `<data set>/{train,validation}.jsonl`, `templates/<data set>/templates.yaml`,
    `corpus/train.txt` (plain text of training rows only), `tokenizer/` and `synthetic.json` with the configuration.

    Raises:
        FileExistsError: If `folder` holds anything else.
    """
    record = json.dumps({"version": GENERATOR_VERSION, "kind": "p3", "config": asdict(config)}, indent=1)
    write_generated(folder, record, lambda new: _write_all(new, config, record))


def _write_all(folder: Path, config: SyntheticP3Config, record: str) -> None:
    train, test = synthetic_p3_sets()
    for each in train:
        _write_rows(folder, each, {"train": config.train_rows}, config.seed)
    for each in test:
        _write_rows(folder, each, {"train": config.shot_rows, "validation": config.test_rows}, config.seed)
    parts = {"train": train, "test": test}
    lists = {
        part: {each.name: {"templates": each.name, "names": list(each.templates())} for each in sets}
        for part, sets in parts.items()
    }
    write_lines(folder / "lists.yaml", [yaml.safe_dump(lists, sort_keys=False)])
    documents = [document for each in train for document in _documents(each, config)]
    random.Random(f"{config.seed}/corpus").shuffle(documents)
    write_lines(folder / "corpus/train.txt", [f"{document}\n" for document in documents])  # a blank line ends one
    # an instruction has the field's name in brackets
    questions = [
        "[words]",
        *(phrasing.format(subject="") for end in ENDS.values() for phrasing in end.phrasings),
        *SUBJECTS,
    ]
    _write_tokenizer(folder / "tokenizer", [*documents, *questions, *(" ".join(each) for each in SUBJECTS.values())])
    write_lines(folder / RECORD, [record])


def _write_rows(folder: Path, dataset: SyntheticP3Set, counts: dict[str, int], seed: int) -> None:
    """Writes a data set's templates, and its splits one after another, so that no row stands in two."""
    stream = dataset.rows(f"{seed}/rows")
    for split, count in counts.items():
        write_lines(folder / dataset.name / f"{split}.jsonl", [json.dumps(next(stream)) for _ in range(count)])
    entries = {
        str(number): {"name": name, "jinja": jinja, "answer_choices": CHOICES}
        for number, (name, jinja) in enumerate(dataset.templates().items())
    }
    text = yaml.safe_dump({"dataset": dataset.name, "templates": entries}, sort_keys=False)
    write_lines(folder / "templates" / dataset.name / "templates.yaml", [text])


def _documents(dataset: SyntheticP3Set, config: SyntheticP3Config) -> Iterator[str]:
    """Yields documents of worked questions, on other rows than those that are written."""
    stream = dataset.rows(f"{config.seed}/corpus")
    for end, subject in dataset.asked:
        for phrasing in ENDS[end].phrasings:
            for _ in range(config.documents_per_template):
                rows = [next(stream) for _ in range(EXAMPLES_PER_DOCUMENT)]
                asked = phrasing.format(subject=subject)
                yield " ".join(f"{row['words']} {asked} {row['answers'][f'{end} {subject}']}" for row in rows)


def _write_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z0-9]+", text)})
    train_vocabulary(texts, folder, vocab_size=VOCABULARY_SIZE, words=words)

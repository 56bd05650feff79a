"""Plain text: documents, their token cache, and the sequences a language model is pretrained on."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.cache_folder import write_once
from tagi_lightning.data.epochs import Batch, EpochSampler, random_generator
from tagi_lightning.data.files import file_digest
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.progress_bar import progress_bar
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.token_cache import tokenizer_definition
from tagi_lightning.data.tokenized import ExampleIndex

LAYOUT_VERSION = 2
"""Raise it with every change of the files a cache folder holds or of what a document is."""

DocumentUnit = Literal["paragraph", "file"]

_SUFFIXES = (".txt", ".jsonl")
_DOCUMENTS_PER_CHUNK = 1024


def corpus_files(corpora: Sequence[Path]) -> list[Path]:
    """Returns the text files of `corpora`, each a .txt or .jsonl file or a folder searched for them.

    Raises:
        DataError: If a path is absent, of another kind, or a folder without text.
    """
    report = DataReport("corpora")
    files = []
    for path in corpora:
        inside = sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not path.exists():
            report.error("missing file or folder", str(path))
        elif not inside:
            report.error("folder without .txt or .jsonl files", str(path))
        elif inside[0].suffix not in _SUFFIXES:
            report.error("file that is neither .txt nor .jsonl", str(path))
        files += inside
    if not corpora:
        report.error("no corpus given", "corpora")
    report.raise_if_errors("Name folders or files of plain text: .txt, or .jsonl whose rows have a `text`.")
    return files


def read_documents(file: Path, unit: DocumentUnit = "paragraph") -> Iterator[str]:
    """Yields the documents of a file that are not empty.

    Args:
        file: A .jsonl file, one document in the `text` of each row, or a .txt file.
        unit: What one document of a .txt file is: lines between blank ones, or the whole file.

    Raises:
        DataError: If the file is not UTF-8 or a row has no text.
    """
    try:
        # utf-8-sig: a byte order mark is no text.
        with file.open(encoding="utf-8-sig") as lines:
            yield from _rows(file, lines) if file.suffix == ".jsonl" else _paragraphs(lines, unit)
    except UnicodeDecodeError as error:
        report = DataReport(str(file))
        report.error("text that is not UTF-8", f"byte {error.start}")
        report.raise_if_errors("Convert the file to UTF-8 or leave it out.")


def _paragraphs(lines: Iterator[str], unit: DocumentUnit) -> Iterator[str]:
    if unit == "file":
        lines = iter(["".join(lines)])
    for has_text, paragraph in itertools.groupby(lines, key=lambda line: not line.isspace()):
        text = "".join(paragraph).strip()
        if has_text and text:
            yield text


def _rows(file: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            text = parse_json(line)["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            report = DataReport(str(file))
            report.error('row that is not JSON with a string "text"', f"line {number}")
            report.raise_if_errors()
        if text:
            yield text


@dataclass(frozen=True)
class TokenizedText:
    """Documents as one flat, memory-mapped row of tokens.

    Attributes:
        tokens: Ids of all documents in a row, int32 [N].
        offsets: Start of each of D documents and the end of the last, int64 [D + 1].
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def cache_key(files: Sequence[Path], tokenizer: PreTrainedTokenizerFast, unit: DocumentUnit) -> str:
    """Returns the digest a token cache is kept under: the files' contents, the tokenizer and the document unit."""
    digest = hashlib.sha256(json.dumps([LAYOUT_VERSION, unit, tokenizer_definition(tokenizer)]).encode())
    for file in files:
        digest.update(f"{file.suffix} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def load_or_tokenize_text(
    corpora: Sequence[Path], tokenizer: PreTrainedTokenizerFast, cache_dir: Path, unit: DocumentUnit = "paragraph"
) -> TokenizedText:
    """Returns the tokenised documents of `corpora`, from their cache folder or tokenising them into it.

    Args:
        corpora: Files and folders of text.
        tokenizer: A fast tokenizer.
        cache_dir: Holds one folder for each set of files and tokenizer.
        unit: What one document of a .txt file is.
    """
    files = corpus_files(corpora)
    folder = cache_dir / f"text-{cache_key(files, tokenizer, unit)[:32]}"
    write_once(folder, lambda new: _write(new, files, tokenizer, unit), "its text is tokenised")
    return TokenizedText(np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "offsets.npy"))


def _write(folder: Path, files: Sequence[Path], tokenizer: PreTrainedTokenizerFast, unit: DocumentUnit) -> None:
    lengths = []
    with (folder / "tokens.bin").open("wb") as flat:
        for ids in _tokenize(files, tokenizer, unit):
            lengths.append(len(ids))
            flat.write(np.asarray(ids, dtype=np.int32).tobytes())
    _wrap(folder / "tokens.bin", sum(lengths))
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))


def _wrap(flat: Path, count: int) -> None:
    """Turns a file of `count` int32 into a .npy file beside it, without holding it in memory."""
    with flat.with_suffix(".npy").open("wb") as wrapped, flat.open("rb") as content:
        header = {"descr": np.dtype(np.int32).str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(wrapped, header)
        shutil.copyfileobj(content, wrapped)
    flat.unlink()


def _tokenize(files: Sequence[Path], tokenizer: PreTrainedTokenizerFast, unit: DocumentUnit) -> Iterator[list[int]]:
    total = sum(file.stat().st_size for file in files)
    with progress_bar(None, "tokenising text", "B", unit_scale=True, total=total) as progress:
        documents = (text for file in files for text in read_documents(file, unit))
        while chunk := list(itertools.islice(documents, _DOCUMENTS_PER_CHUNK)):
            yield from tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
            progress.update(sum(len(text.encode()) for text in chunk))


@dataclass(frozen=True)
class TextSequences:
    """Pieces of documents; the dataset of a DataLoader whose sampler yields `ExampleIndex` (its task is not used).

    Attributes:
        text: The documents.
        starts: First token of each sequence, int64 [N].
        ends: Token after the last of each sequence, int64 [N].
    """

    text: TokenizedText
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def cut(cls, text: TokenizedText, documents: NDArray[np.int64], max_length: int, min_length: int) -> TextSequences:
        """Cuts `documents` into sequences of `max_length` tokens; the last of each document may be shorter.

        Args:
            text: All documents.
            documents: Which of them to cut.
            max_length: Tokens of a sequence at most.
            min_length: Shorter sequences are left out.
        """
        begins, stops = text.offsets[documents], text.offsets[documents + 1]
        counts = -(-(stops - begins) // max_length)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(begins, counts) + (np.arange(counts.sum()) - first) * max_length
        ends = np.minimum(starts + max_length, np.repeat(stops, counts))
        kept = ends - starts >= min_length
        return cls(text, starts[kept], ends[kept])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence [N]."""
        return self.ends - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: ExampleIndex) -> tuple[ExampleIndex, list[int]]:
        return index, self.text.tokens[self.starts[index.instance] : self.ends[index.instance]].tolist()


def split_documents(count: int, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of training and held-out documents, each in order.

    Args:
        count: Number of documents, at least 2.
        held_out: Share held out; at least one document is, and at least one is not.
        seed: Decides which are held out.
    """
    if count < 2:
        raise ValueError(f"the corpora hold {count} document(s); at least 2 are needed to hold one out for validation")
    order = random_generator(seed, "held-out documents").permutation(count)
    size = min(max(1, round(count * held_out)), count - 1)
    return np.sort(order[size:]), np.sort(order[:size])


class TextBatchSampler(EpochSampler):
    """Batches of B sequences of similar length; every sequence once an epoch, in an order by (seed, epoch).

    Sequences are shuffled, sorted by length within a pool of some batches, and the batches of a pool
    shuffled. With seed None the order is that of the sequences and every epoch draws the same.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        seed: int | None,
        pool_batches: int = 100,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Takes the lengths to plan by.

        Args:
            lengths: Tokens of each sequence.
            batch_size: Sequences in a global batch, B; the last of an epoch may have fewer.
            seed: Decides the order together with the epoch; None for evaluation.
            pool_batches: Batches among which sequences are sorted by length.
            rank: This process.
            world_size: Number of processes that share each batch.
        """
        super().__init__(rank, world_size)
        self.lengths, self.batch_size, self.seed, self.pool_batches = lengths, batch_size, seed, pool_batches

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`."""
        if self.seed is None:
            return [
                [ExampleIndex(0, int(place), None) for place in part]
                for part in self._cut(np.arange(len(self.lengths)))
            ]
        generator = random_generator(self.seed, epoch, "text")
        order = generator.permutation(len(self.lengths))
        size = self.batch_size * self.pool_batches
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), size):
            pool = order[start : start + size]
            parts = self._cut(pool[np.argsort(self.lengths[pool], kind="stable")])
            last = [parts.pop()] if start + size >= len(order) else []
            batches += [parts[place] for place in generator.permutation(len(parts))] + last
        return [[ExampleIndex(0, int(place), epoch) for place in batch] for batch in batches]

    def _cut(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

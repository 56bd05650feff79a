"""Self-supervised examples from a row of tokens, the batches made of them, and their mix with tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.batch import TaskBatch, TextBatch, Tokens, pad_labels
from tagi_lightning.data.epochs import Batch, EpochSampler, random_generator
from tagi_lightning.data.text import TextSequences
from tagi_lightning.data.tokenized import ExampleIndex

Row = tuple[ExampleIndex, list[int]]
"""Where a sequence was found, and its tokens."""

MIN_LENGTH = 3
"""Fewest tokens of a sequence that can be cut into three segments."""


def sentinel_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Returns the ids of `<extra_id_0>`, `<extra_id_1>` ... in this order, whatever their order in the vocabulary.

    Raises:
        ValueError: If the tokenizer has none.
    """
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[name])
    if not found:
        raise ValueError(f"{tokenizer.name_or_path} has no <extra_id_0>; span corruption needs a T5 tokenizer")
    return found


def _composition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Returns `parts` positive integers that sum to `total`, uniformly drawn."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False) + 1)
    return [int(part) for part in np.diff([0, *cuts, total])]


def span_corruption(
    ids: Sequence[int],
    rng: np.random.Generator,
    sentinels: Sequence[int],
    noise_density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[list[int], list[int]]:
    """Returns T5's denoising example: spans of `ids` replaced by sentinels, and the sentinels with what they hide.

    The first span is never at the start and the last always at the end, as in T5.

    Args:
        ids: At least 2 tokens.
        rng: Draws the spans.
        sentinels: Ids of the sentinels in their order; a long row has no more spans than these.
        noise_density: Share of tokens to hide; at least one is hidden and one is kept.
        mean_span: Mean length of a span.
    """
    noise = min(max(round(len(ids) * noise_density), 1), len(ids) - 1)
    spans = min(max(round(noise / mean_span), 1), len(ids) - noise, len(sentinels))
    source: list[int] = []
    target: list[int] = []
    place = 0
    kept, hidden = _composition(len(ids) - noise, spans, rng), _composition(noise, spans, rng)
    for sentinel, keep, hide in zip(sentinels, kept, hidden, strict=False):
        source += [*ids[place : place + keep], sentinel]
        target += [sentinel, *ids[place + keep : place + keep + hide]]
        place += keep + hide
    return source, target


def prefix_lm(ids: Sequence[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Returns `ids`, at least 2, cut into a source and the target that follows it, neither empty."""
    cut = int(rng.integers(1, len(ids)))
    return list(ids[:cut]), list(ids[cut:])


def abc_split(ids: Sequence[int], rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Returns `ids`, N ≥ 3 of them, cut into a, b and c of eq. 3: p1 ~ U{1..N-2}, p2 ~ U{p1+1..N-1}."""
    first = int(rng.integers(1, len(ids) - 1))
    second = int(rng.integers(first + 1, len(ids)))
    return list(ids[:first]), list(ids[first:second]), list(ids[second:])


@dataclass(frozen=True)
class SegmentCollator:
    """Builds the batches the hypernetwork is pretrained on (eq. 3): a is the instruction, b the input, c the target.

    Each example is a task of its own, T = B, without teacher. Segments are drawn by (seed, epoch, sequence).

    Attributes:
        pad_id: Id of padding.
        eos_id: Id that ends every target.
        seed: Decides the cuts together with the epoch.
        eos_after_input: Whether it also ends instructions and inputs, as encoder-decoder models read them.
    """

    pad_id: int
    eos_id: int
    seed: int = 0
    eos_after_input: bool = True

    def __call__(self, rows: Sequence[Row]) -> TaskBatch:
        """Returns the batch of B sequences."""
        instructions, inputs, targets = [], [], []
        end = [self.eos_id] if self.eos_after_input else []
        for index, ids in rows:
            a, b, c = abc_split(ids, random_generator(self.seed, index.epoch, "abc", index.instance))
            instructions.append([*a, *end])
            inputs.append([*b, *end])
            targets.append([*c, self.eos_id])
        return TaskBatch(
            instruction=Tokens.pad(instructions, self.pad_id),
            input=Tokens.pad(inputs, self.pad_id),
            labels=pad_labels(targets),
            task_index=torch.arange(len(rows)),
            category=torch.full((len(rows),), -1),
        )


@dataclass(frozen=True)
class DenoisingCollator:
    """Builds the batches a backbone is pretrained on, each example span corruption or prefix language modelling.

    Which of them, and where it is cut, is drawn by (seed, epoch, sequence).

    Attributes:
        pad_id: Id of padding.
        eos_id: Id that ends every source and target.
        sentinels: Ids of the sentinels in their order.
        span_corruption_share: Share of examples that are span corruption; the others are prefix LM.
        seed: Decides the draws together with the epoch.
    """

    pad_id: int
    eos_id: int
    sentinels: tuple[int, ...]
    span_corruption_share: float
    seed: int = 0

    def __call__(self, rows: Sequence[Row]) -> TextBatch:
        """Returns the batch of B sequences."""
        pairs = [self._pair(index, ids) for index, ids in rows]
        return TextBatch(
            source=Tokens.pad([[*source, self.eos_id] for source, _ in pairs], self.pad_id),
            labels=pad_labels([[*target, self.eos_id] for _, target in pairs]),
        )

    def _pair(self, index: ExampleIndex, ids: list[int]) -> tuple[list[int], list[int]]:
        rng = random_generator(self.seed, index.epoch, "denoising", index.instance)
        if rng.random() < self.span_corruption_share:
            return span_corruption(ids, rng, self.sentinels)
        return prefix_lm(ids, rng)


TEXT = -1
"""The task of an `ExampleIndex` that points to plain text in a mix."""


class MixedSampler(EpochSampler):
    """Every batch of tasks once an epoch, with batches of text at random places between them.

    Text has epochs of its own, which go on where the last epoch of the mix left them.
    """

    def __init__(
        self, tasks: EpochSampler, text: EpochSampler, ratio: float, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Takes what to mix.

        Args:
            tasks: Plans the batches of tasks.
            text: Plans the batches of text.
            ratio: Batches of text for each batch of tasks.
            seed: Decides the order together with the epoch.
            rank: This process.
            world_size: Number of processes that share each batch.
        """
        super().__init__(rank, world_size)
        self.tasks, self.text, self.seed = tasks, text, seed
        self.task_batches, self.text_batches_an_epoch = len(tasks.plan(0)), len(text.plan(0))
        self.text_batches = round(ratio * self.task_batches)

    def __len__(self) -> int:
        return self.task_batches + self.text_batches

    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`."""
        batches = self.tasks.plan(epoch) + self._text(epoch)
        return [batches[place] for place in random_generator(self.seed, epoch, "mix").permutation(len(batches))]

    def _text(self, epoch: int) -> list[Batch]:
        """Returns the epoch's stretch of the endless row of text batches."""
        begin, end = epoch * self.text_batches, (epoch + 1) * self.text_batches
        size = self.text_batches_an_epoch
        rounds = range(begin // size, -(-end // size))
        row = [batch for each in rounds for batch in self.text.plan(each)]
        offset = rounds.start * size
        return [[index._replace(task=TEXT) for index in batch] for batch in row[begin - offset : end - offset]]


class MixedDataset(Dataset[Any]):
    """Tasks and text as one dataset; an `ExampleIndex` whose task is `TEXT` points to text."""

    def __init__(self, tasks: Any, text: TextSequences) -> None:
        self.tasks, self.text = tasks, text

    def __getitems__(self, indices: Sequence[ExampleIndex]) -> list[Any]:
        """Returns the examples of a batch, all of tasks or all of text."""
        if indices[0].task == TEXT:
            return [self.text[index] for index in indices]
        return list(self.tasks.__getitems__(indices))

    def __getitem__(self, index: ExampleIndex) -> Any:
        return self.__getitems__([index])[0]


class MixedCollator:
    """Collates a batch of either kind to a `TextBatch`; a task's source is its instruction and input, (a;b)."""

    def __init__(self, tasks: Callable[[Any], TaskBatch], text: Callable[[Sequence[Row]], TextBatch]) -> None:
        self.tasks, self.text = tasks, text

    def __call__(self, examples: Sequence[Any]) -> TextBatch:
        """Returns the batch."""
        if isinstance(examples[0], tuple):
            return self.text(examples)
        batch = self.tasks(examples)
        assert batch.prompt is not None, "BackboneDataModule refuses tasks without prompts"
        return TextBatch(batch.prompt, batch.labels)

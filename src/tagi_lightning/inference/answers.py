"""A model's answers to one batch: generated text, or the likeliest of an example's choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, Tokens
from tagi_lightning.model import TagiModel


@dataclass(frozen=True)
class Answers:
    """A system's answers to one batch.

    Attributes:
        texts: Generated text, or the choice likeliest per token (TAGI's rule), B long.
        logprob_sum: Log-likelihood of each choice summed over its tokens (T0's rule), B rows, one without choices
            empty; none where all was generated.
        logprob_mean: The same per token.
    """

    texts: tuple[str, ...]
    logprob_sum: tuple[tuple[float, ...], ...] = ()
    logprob_mean: tuple[tuple[float, ...], ...] = ()


@torch.no_grad()
def answer(
    model: TagiModel,
    batch: TaskBatch,
    inputs: Tokens,
    adapter: TaskAdapter,
    config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Answers:
    """Answers one batch: ranks an example's choices where it has any, generates elsewhere.

    Args:
        model: The model.
        batch: What is asked.
        inputs: What the backbone reads [B, S].
        adapter: Conditioning of T tasks.
        config: How to decode.
        tokenizer: Decodes generated ids.
    """
    if batch.choices is None or batch.choice_index is None:
        return Answers(_generate(model, inputs, adapter, batch.task_index, config, tokenizer))
    labels = batch.choices.ids.masked_fill(batch.choices.mask == 0, IGNORE_INDEX)
    totals, lengths = model.score(inputs, labels, batch.choice_index, adapter, batch.task_index)
    counts = torch.bincount(batch.choice_index, minlength=len(batch))
    sums = tuple(tuple(row.tolist()) for row in totals.split(counts.tolist()))
    means = tuple(tuple(row.tolist()) for row in (totals / lengths).split(counts.tolist()))
    open_ended = counts == 0
    generated: Iterator[str] = iter(())
    if open_ended.any():
        rest, index = inputs.map(lambda rows: rows[open_ended]), batch.task_index[open_ended]
        generated = iter(_generate(model, rest, adapter, index, config, tokenizer))
    texts = [
        choices[max(range(len(row)), key=row.__getitem__)] if choices else next(generated)
        for choices, row in zip(batch.choice_texts, means, strict=True)
    ]
    return Answers(tuple(texts), sums, means)


def _generate(
    model: TagiModel,
    inputs: Tokens,
    adapter: TaskAdapter,
    task_index: Tensor,
    config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[str, ...]:
    ids = model.generate(inputs, adapter, task_index, config.with_newlines(tokenizer))
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    if config.stop_at_newline:
        texts = [text.strip().partition("\n")[0] for text in texts]
    return tuple(text.strip() for text in texts)

"""Answer choices ranked with a shared encoding."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.bench.measure import Result, in_turn, summarize
from tagi_lightning.bench.shapes import backbone, random_tokens
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens

RANKED_LENGTHS = {"rte": (77, 2, 2), "anli": (106, 3, 3), "hellaswag": (92, 4, 16)}
"""Tokens of the input, choices, and tokens of the longest choice: means over the test templates of P3's RTE, ANLI and
HellaSwag, read as fields with the T5 vocabulary."""

BATCH = 32


@torch.no_grad()
def rank_scoring(size: str, repeats: int) -> list[Result]:
    """Choices ranked with a shared encoding, against the least that sharing the encoder allows.

    The bound is (E + C D) / (C (E + D)) of one full forward a choice, E being the encoder's time and D a choice's,
    both measured in the same repeat.
    """
    model, results = backbone(size), []
    nothing = TaskAdapter()
    for name, (length, choices, answer) in RANKED_LENGTHS.items():
        inputs = random_tokens(BATCH, length, model.vocabulary_size, seed=0)
        labels = random_tokens(BATCH * choices, answer, model.vocabulary_size, seed=1).ids
        index = torch.arange(BATCH).repeat_interleave(choices)
        task = torch.zeros(BATCH, dtype=torch.long)

        def shared(inputs: Tokens = inputs, labels: Tensor = labels, index: Tensor = index) -> None:
            model.score(inputs, labels, index, nothing, task)  # noqa: B023

        def one_choice(inputs: Tokens = inputs, labels: Tensor = labels, step: int = choices) -> None:
            logits = model(inputs, labels[::step], nothing, task)  # noqa: B023
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[::step], ignore_index=IGNORE_INDEX)

        def encoder(inputs: Tokens = inputs) -> None:
            model.read(inputs)

        times = in_turn([shared, one_choice, encoder], repeats)
        ratios = []
        for scored, forward, encoded in times:
            decoded = max(forward - encoded, 0.0)
            ratios.append(scored / (encoded + choices * decoded))
        parts = {
            part: median(row[place] for row in times) for place, part in enumerate(("shared", "forward", "encoder"))
        }
        compares = f"{choices} choices of {answer} tokens on {length}: shared encoding / (E + C D)"
        results.append(summarize(f"rank_{name}", compares, ratios, 1.10, size=size, seconds=parts))
    return results

"""Ensemble-ICL: an instance answered once beside each demonstration, and the choices' log-likelihoods averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from tagi_lightning.evaluation.predictions import Prediction


def average_predictions(members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Returns one answer for each instance: each choice's log-likelihood averaged over the members.

    Args:
        members: Answers of each member to the same instances in the same order.

    Raises:
        ValueError: If an instance has no choices: generated texts have no average.
    """
    return [_average(answers) for answers in zip(*members, strict=True)]


def _average(answers: Sequence[Prediction]) -> Prediction:
    first = answers[0]
    if not first.ranked:
        raise ValueError(
            f"instance {first.id} of task {first.task} has no answer choices, and generated answers cannot be "
            "averaged; leave out the system ensemble, or the task"
        )
    sums, means = (
        tuple(map(fmean, zip(*rows, strict=True)))
        for rows in ([each.logprob_sum for each in answers], [each.logprob_mean for each in answers])
    )
    best = max(range(len(means)), key=means.__getitem__)
    return replace(first, prediction=first.choices[best], logprob_sum=sums, logprob_mean=means)

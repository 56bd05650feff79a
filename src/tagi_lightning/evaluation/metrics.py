"""ROUGE, exact match and rank accuracy of predictions, as Tk-Instruct and T0 report them, 0 to 100."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from statistics import median
from typing import Any

from torchmetrics.functional.text.rouge import rouge_score

from tagi_lightning.evaluation.benchmarks import average
from tagi_lightning.evaluation.predictions import Prediction

Scores = dict[str, float]
"""Figures of one row or one group of rows by name."""

_Scored = tuple[Prediction, Scores]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower-cases, drops ASCII punctuation and folds white space: SQuAD's normalisation without its articles."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 where the normalised prediction equals a normalised reference, else 0.0."""
    answer = normalize(prediction)
    return float(any(normalize(reference) == answer for reference in references))


def rouge(prediction: str, references: Sequence[str]) -> Scores:
    """Returns `rougeL` and `rouge1`: F-measures with Porter stemming, each the best over the references, 0 to 1.

    Equal to Google's `rouge_score`. Words are runs of a-z and 0-9, so text without any, empty text
    included, scores 0.

    Raises:
        ValueError: If there are no references.
    """
    if not references:
        raise ValueError("ROUGE needs at least one reference")
    keys = ("rougeL", "rouge1")
    found = rouge_score(prediction, list(references), accumulate="best", use_stemmer=True, rouge_keys=keys)
    return {key: float(found[f"{key}_fmeasure"]) for key in keys}


def rank_accuracy(row: Prediction) -> Scores:
    """Returns 1.0 where a ranked row's likeliest choice is the gold one, else 0.0.

    `accuracy_sum` ranks by the summed log-probability as T0 does, `accuracy_mean` by the mean per token as TAGI does.
    Of equally likely choices the first is taken.
    """
    return {
        "accuracy_sum": float(_argmax(row.logprob_sum) == row.gold),
        "accuracy_mean": float(_argmax(row.logprob_mean) == row.gold),
    }


def score_row(row: Prediction) -> Scores:
    """Returns `rougeL, rouge1, exact_match` of a row, and for a ranked row `accuracy_sum, accuracy_mean`, 0 to 100."""
    scores = rouge(row.prediction, row.references)
    scores["exact_match"] = exact_match(row.prediction, row.references)
    if row.ranked:
        scores |= rank_accuracy(row)
    return {name: 100.0 * value for name, value in scores.items()}


def aggregate(rows: Iterable[Prediction]) -> dict[str, Any]:
    """Scores rows and averages them as `metrics.json` shows them.

    In plain rows (SNI) every figure is the mean over instances. In ranked or templated rows (P3) it is the mean
    over tasks of the mean over templates of the mean over instances; accuracies count ranked rows alone.
    A task here is a source data set where the rows name one, since P3 poses each data set in many templates.
    The order of the rows changes nothing.

    Args:
        rows: Rows of one evaluation.

    Returns:
        `overall`: n, rougeL, rouge1, exact_match and, with ranked rows, accuracy_sum and accuracy_mean, 0 to 100,
        to four decimals; the same under `by_task`, `by_category` and `by_template` (`task/template`) for each group
        by name; tasks of ranked rows also the medians over their templates, accuracy_sum_median and
        accuracy_mean_median; and `p3`, the averages over P3's eleven test tasks by both scoring rules. A key that does
        not apply is absent.

    Raises:
        ValueError: If there are no rows.
    """
    scored = [(row, score_row(row)) for row in rows]
    if not scored:
        raise ValueError("there are no predictions to score")
    nested = any(row.ranked or row.template for row, _ in scored)
    result: dict[str, Any] = {"overall": _summary(scored, nested)}
    for name, key in (("by_task", _task), ("by_category", _category), ("by_template", _template)):
        groups = {group: members for group, members in sorted(_groups(scored, key).items()) if group}
        if groups:
            result[name] = {group: _summary(members, nested) for group, members in groups.items()}
    if nested:
        for task, members in _groups(scored, _task).items():
            result["by_task"][task] |= _medians(members)
        result |= _benchmark(result["by_task"])
    return result


def _benchmark(by_task: Mapping[str, Scores]) -> dict[str, Any]:
    """Returns `p3`, the averages over P3's test tasks by both scoring rules; nothing where none was ranked."""
    rules = ("accuracy_sum", "accuracy_mean")
    found = {rule: average({task: row[rule] for task, row in by_task.items() if rule in row}) for rule in rules}
    return {"p3": found} if all(found.values()) else {}


def _medians(scored: Sequence[_Scored]) -> Scores:
    """Returns the median over a task's templates of each accuracy, named `<accuracy>_median`."""
    templates = [_mean_over_rows(template) for template in _groups(scored, _template).values()]
    names = [name for name in ("accuracy_sum", "accuracy_mean") if all(name in scores for scores in templates)]
    return {f"{name}_median": round(median(scores[name] for scores in templates), 4) for name in names}


def _task(row: Prediction) -> str:
    return row.dataset or row.task


def _category(row: Prediction) -> str:
    return row.category


def _template(row: Prediction) -> str:
    return f"{_task(row)}/{row.template}" if row.template else ""


def _groups(scored: Sequence[_Scored], key: Callable[[Prediction], str]) -> dict[str, list[_Scored]]:
    groups: dict[str, list[_Scored]] = defaultdict(list)
    for row, scores in scored:
        groups[key(row)].append((row, scores))
    return groups


def _summary(scored: Sequence[_Scored], nested: bool) -> dict[str, float]:
    """Returns the number of rows and their averaged figures, rounded."""
    means = _mean_over_tasks(scored) if nested else _mean_over_rows(scored)
    return {"n": len(scored)} | {name: round(value, 4) for name, value in means.items()}


def _mean_over_tasks(scored: Sequence[_Scored]) -> Scores:
    """Returns the mean over tasks of the mean over templates of the mean over instances."""
    return _mean([_mean_over_templates(task) for task in _groups(scored, _task).values()])


def _mean_over_templates(scored: Sequence[_Scored]) -> Scores:
    return _mean([_mean_over_rows(template) for template in _groups(scored, _template).values()])


def _mean_over_rows(scored: Sequence[_Scored]) -> Scores:
    return _mean([scores for _, scores in scored])


def _mean(figures: Sequence[Scores]) -> Scores:
    """Returns the mean of each figure over those that have it; exact sums make it independent of their order."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for figure in figures:
        for name, value in figure.items():
            by_name[name].append(value)
    return {name: fsum(values) / len(values) for name, values in by_name.items()}


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])

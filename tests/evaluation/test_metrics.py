import random
import re
import time
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from tagi_lightning.evaluation.metrics import aggregate, exact_match, normalize, rank_accuracy, rouge, score_row
from tagi_lightning.evaluation.predictions import Prediction

WORDS = st.sampled_from(["The", "cats", "running", "run", "sat", "on", "a", "mat,", "mat", "42", "é", "..."])
SENTENCES = st.lists(WORDS, max_size=8).map(" ".join)
REFERENCES = st.lists(SENTENCES, min_size=1, max_size=4)


def row(prediction="", references=("yes",), task="t", id="0", **rest):
    fields = {"category": "c", "dataset": "", "template": "", "instruction_sha256": ""} | rest
    return Prediction(id=id, task=task, prediction=prediction, references=tuple(references), **fields)


def ranked(likely_sum, likely_mean, gold, dataset, template, id="0"):
    """A row of three choices whose likeliest are the two named."""
    return row(
        "no",
        ("yes",),
        task=f"{dataset}-{template}",
        id=id,
        category=dataset,
        dataset=dataset,
        template=template,
        choices=("a", "b", "c"),
        logprob_sum=tuple(-1.0 if index == likely_sum else -2.0 for index in range(3)),
        logprob_mean=tuple(-0.5 if index == likely_mean else -0.75 for index in range(3)),
        gold=gold,
    )


@pytest.mark.parametrize(
    ("prediction", "references", "rouge_l", "rouge_1", "exact"),
    [
        # 5 of 5 words, 5 of 6 words, in order: 2 · 1 · (5/6) / (1 + 5/6)
        ("the cats sat on mat", ["the cat sat on the mat"], 10 / 11, 10 / 11, 0),
        # all words, two of three in order
        ("mat on the", ["the mat on"], 2 / 3, 1, 0),
        # the better of the references, for each figure by itself: (1/1, 1/2) beats (1/1, 1/3)
        ("Positive", ["very positive indeed", "positive!  review"], 2 / 3, 2 / 3, 0),
        ("  It's   RAINING. ", ["no", "its raining"], 2 / 5, 2 / 5, 1),
        ("", ["yes"], 0, 0, 0),
        ("?!", ["yes"], 0, 0, 0),
        ("the the the", ["the"], 1 / 2, 1 / 2, 0),
    ],
)
def test_golden(prediction, references, rouge_l, rouge_1, exact):
    scores = score_row(row(prediction, references))
    assert scores == pytest.approx(
        {"rougeL": 100 * rouge_l, "rouge1": 100 * rouge_1, "exact_match": 100 * exact}, abs=1e-4
    )


def naive_rouge(prediction, reference):
    stem = PorterStemmer().stem

    def words(text):
        return tuple(stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower()))

    @cache
    def common(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + common(a[1:], b[1:])
        return max(common(a[1:], b), common(a, b[1:]))

    a, b = words(prediction), words(reference)
    # F of precision h/|a| and recall h/|b| is 2h / (|a| + |b|)
    overlaps = {"rougeL": common(a, b), "rouge1": (Counter(a) & Counter(b)).total()}
    return {key: 2 * hits / (len(a) + len(b)) if hits else 0.0 for key, hits in overlaps.items()}


@given(SENTENCES, REFERENCES)
@settings(max_examples=60, deadline=None)
def test_rouge_is_the_best_over_references_of_the_textbook_formula(prediction, references):
    naive = [naive_rouge(prediction, reference) for reference in references]
    expected = {key: max(scores[key] for scores in naive) for key in ("rougeL", "rouge1")}
    assert rouge(prediction, references) == pytest.approx(expected, abs=1e-6)


@given(SENTENCES, REFERENCES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_references_changes_nothing(prediction, references, rng):
    shuffled = rng.sample(references, len(references))
    assert score_row(row(prediction, shuffled)) == score_row(row(prediction, references))


@given(SENTENCES.filter(lambda text: re.search("[A-Za-z0-9]", text)), REFERENCES)
@settings(max_examples=40, deadline=None)
def test_a_reference_itself_scores_100(text, others):
    assert score_row(row(text, [*others, text])) == {"rougeL": 100, "rouge1": 100, "exact_match": 100}


@given(st.text(), REFERENCES)
@settings(max_examples=40, deadline=None)
def test_every_figure_lies_between_0_and_100(prediction, references):
    assert all(0 <= value <= 100 for value in score_row(row(prediction, references)).values())


@given(st.text())
def test_normalize_is_idempotent(text):
    assert normalize(normalize(text)) == normalize(text)


def test_exact_match_keeps_articles_and_word_order():
    assert not exact_match("the answer", ["answer"])
    assert not exact_match("b a", ["a b"])
    assert exact_match("A-B", ["ab"])


def test_rouge_without_references_is_an_error():
    with pytest.raises(ValueError, match="at least one reference"):
        rouge("text", [])


def test_rank_accuracy_ranks_by_sum_and_by_mean_and_takes_the_first_of_equals():
    assert rank_accuracy(ranked(1, 2, gold=1, dataset="d", template="t")) == {"accuracy_sum": 1, "accuracy_mean": 0}
    assert rank_accuracy(ranked(1, 2, gold=2, dataset="d", template="t")) == {"accuracy_sum": 0, "accuracy_mean": 1}
    # no choice named likely: all equal
    tie = ranked(None, None, gold=0, dataset="d", template="t")
    assert rank_accuracy(tie) == {"accuracy_sum": 1, "accuracy_mean": 1}


def test_plain_rows_average_over_instances():
    rows = [
        row("yes", task="a", id="0"),
        row("yes", task="a", id="1"),
        row("no", task="a", id="2"),
        row("no", task="b"),
    ]
    assert aggregate(rows) == {
        "overall": {"n": 4, "rougeL": 50.0, "rouge1": 50.0, "exact_match": 50.0},
        "by_task": {
            "a": {"n": 3, "rougeL": 66.6667, "rouge1": 66.6667, "exact_match": 66.6667},
            "b": {"n": 1, "rougeL": 0.0, "rouge1": 0.0, "exact_match": 0.0},
        },
        "by_category": {"c": {"n": 4, "rougeL": 50.0, "rouge1": 50.0, "exact_match": 50.0}},
    }


def test_ranked_rows_average_over_tasks_of_templates_of_instances():
    rows = [
        ranked(0, 0, gold=0, dataset="rte", template="p", id="0"),
        ranked(0, 1, gold=0, dataset="rte", template="p", id="1"),
        ranked(1, 1, gold=0, dataset="rte", template="p", id="2"),
        ranked(1, 1, gold=0, dataset="rte", template="p", id="3"),
        ranked(0, 0, gold=0, dataset="rte", template="q"),
        ranked(2, 2, gold=0, dataset="wic", template="p"),
    ]
    metrics = aggregate(rows)
    accuracies = {
        name: {group: (found["accuracy_sum"], found["accuracy_mean"]) for group, found in metrics[name].items()}
        for name in ("by_task", "by_category", "by_template")
    }
    assert accuracies["by_template"] == {"rte/p": (50.0, 25.0), "rte/q": (100.0, 100.0), "wic/p": (0.0, 0.0)}
    assert accuracies["by_task"] == accuracies["by_category"] == {"rte": (75.0, 62.5), "wic": (0.0, 0.0)}
    assert metrics["overall"]["n"] == 6
    assert (metrics["overall"]["accuracy_sum"], metrics["overall"]["accuracy_mean"]) == (37.5, 31.25)


def test_accuracies_stand_only_where_rows_are_ranked():
    metrics = aggregate([ranked(0, 0, gold=0, dataset="rte", template="p"), row("yes", task="plain", category="")])
    assert metrics["by_task"]["rte"]["accuracy_sum"] == 100
    assert "accuracy_sum" not in metrics["by_task"]["plain"]
    assert metrics["overall"]["accuracy_sum"] == 100
    assert list(metrics["by_category"]) == ["rte"]


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_of_rows_changes_nothing(rng):
    rows = [row("a b c"[: index % 6], ("a b c d",), task=f"t{index % 3}", id=str(index)) for index in range(30)]
    assert aggregate(rng.sample(rows, len(rows))) == aggregate(rows)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no predictions"):
        aggregate([])


def test_rows_cost_little():
    """12,000 rows, the SNI test set, have to be scored in well under a minute."""
    rng = random.Random(0)
    words = ["positive", "running", "the", "house", "questions", "of", "entailment", "answers"]
    rows = [
        row(" ".join(rng.choices(words, k=10)), (" ".join(rng.choices(words, k=10)),), id=str(i)) for i in range(300)
    ]
    start = time.process_time()
    aggregate(rows)
    assert (time.process_time() - start) / len(rows) * 12_000 < 40


def test_ranked_rows_of_p3s_test_tasks_are_averaged_by_both_rules():
    golds = [("super_glue_rte", 0), ("super_glue_rte", 0), ("hellaswag", 1)]
    rows = [ranked(0, 1, gold, dataset, "a", id=str(place)) for place, (dataset, gold) in enumerate(golds)]
    found = aggregate(rows)["p3"]
    assert (found["accuracy_sum"]["mean"], found["accuracy_sum"]["k"]) == (50.0, 2)
    assert found["accuracy_mean"]["mean"] == 50.0
    assert "p3" not in aggregate([ranked(0, 1, 0, "other", "a")])

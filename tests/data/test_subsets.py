from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.subsets import category_groups, select_categories, subset


@pytest.mark.parametrize(("size", "tasks"), [(6, 408), (15, 564), (30, 687), (60, 756)])
def test_subsets_have_the_papers_sizes(size, tasks):
    """Table 11."""
    assert len(subset(size)) == size
    assert sum(subset(size).values()) == tasks


def test_each_subset_holds_the_smaller_ones_and_goes_by_size():
    sizes = list(category_groups())
    assert sizes == sorted(sizes)
    for smaller, larger in itertools.pairwise(sizes):
        assert subset(smaller).items() < subset(larger).items()
        assert min(subset(smaller).values()) >= max(category_groups()[larger].values())


def test_an_unknown_size_is_told_with_those_allowed():
    with pytest.raises(ValueError, match="no subset of 7 categories, allowed: 6, 15, 30, 60"):
        subset(7)
    report = DataReport("folder")
    assert select_categories(7, ["Misc."], report) == frozenset()
    assert report.errors == {"unknown category subset": ["no subset of 7 categories, allowed: 6, 15, 30, 60"]}


def test_a_subset_takes_what_is_present_and_notes_what_no_subset_knows():
    report = DataReport("folder")
    assert select_categories(6, ["Misc.", "Summarization", "Juggling"], report) == {"Misc."}
    assert report.notes == {"category outside the paper's table, in no subset": ["Juggling"]}
    assert not report.errors


def test_names_must_be_present():
    report = DataReport("folder")
    assert select_categories(["Juggling"], ["Misc.", "Juggling"], report) == {"Juggling"}
    assert not report.errors
    select_categories(["Jugling", "Misc."], ["Misc.", "Juggling"], report)
    assert report.errors == {"unknown category (allowed: Juggling, Misc.)": ["'Jugling'"]}


@pytest.mark.realdata
def test_real_training_categories_fit_the_table():
    if "TAGI_DATA" not in os.environ:
        pytest.skip("TAGI_DATA does not name a folder with sni/")
    folder = Path(os.environ["TAGI_DATA"]) / "sni"
    tasks = read_sni(folder, allow_missing=True).train
    table = subset(60)
    found = [task.category for task in tasks]
    for category in set(found) & table.keys():
        assert found.count(category) <= table[category]
    # Names of releases before 2.6, which a collected folder may still hold.
    former = {"Basic Sentiment Analysis", "Long Text Generation", "Structured Text Generation"}
    assert set(found) - table.keys() <= former

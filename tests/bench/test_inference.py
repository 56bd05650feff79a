import pytest

from tagi_lightning.bench import CASES, inference


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(inference, "BATCH", 8)
    monkeypatch.setattr(inference, "BATCHES", 1)


@pytest.mark.parametrize("group", ["generation", "second_input", "known_task", "mixed_tasks", "preparation"])
def test_timed_cases_run_and_name_what_they_divide(group):
    results = CASES[group]("tiny", 1)
    assert len({result.case for result in results}) == len(results)
    assert all(result.ratio > 0 and " / " in result.compares for result in results)


def test_counted_operations_are_those_that_the_token_counts_allow():
    """At any size the shares of fusion and the cost of an input without fusion are within their bounds."""
    for result in CASES["flops"]("tiny", 1):
        assert 0 < result.ratio < 1.2, result.case
        if "fusion" in result.case or "quarter" in result.case:
            assert result.ratio < result.at_most, result.case

import pytest

from tagi_lightning.bench import prefix as cases


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cases, "BATCH", 2)
    monkeypatch.setattr(cases, "TASKS", 2)
    monkeypatch.setattr(cases, "INSTRUCTIONS", {"def": 20})


def test_every_figure_is_named_once_and_says_what_it_divides():
    results = cases.prefix("tiny", 1)
    assert len({result.case for result in results}) == len(results)
    assert all(result.ratio > 0 and " / " in result.compares for result in results)
    told = {result.case: result.ratio for result in results}
    assert told["prefix_flops_lora_def"] < told["prefix_flops_cached_def"] < told["prefix_flops_prefix_def"] < 1
    assert told["prefix_flops_lora_def_cached"] < 1 < told["prefix_flops_prefix_def_cached"]

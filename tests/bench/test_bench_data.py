import pytest

from tagi_lightning.bench.data import drawn_lengths, padding, padding_shares, tokenise
from tagi_lightning.data.sampler import TaskBatchSampler


@pytest.fixture(autouse=True)
def no_real_data(monkeypatch):
    monkeypatch.delenv("TAGI_DATA", raising=False)


def test_shares_count_instructions_once_a_task():
    tasks = drawn_lengths(4, 8, "def")
    [batch, *_] = TaskBatchSampler(tasks, 4, 2, seed=0).plan(0)
    shares = padding_shares(tasks, [batch])
    lengths = [tasks[number].instruction for number in {index.task for index in batch}]
    assert len(lengths) == 4
    assert shares["instruction"] == pytest.approx(1 - sum(lengths) / (4 * max(lengths)))
    inputs = [int(tasks[index.task].inputs[index.instance]) for index in batch]
    targets = [int(tasks[index.task].targets[index.instance]) for index in batch]
    assert shares["input"] == pytest.approx(1 - sum(inputs) / (8 * max(inputs)))
    both = 8 * (max(inputs) + max(targets))
    assert shares["input_target"] == pytest.approx(1 - (sum(inputs) + sum(targets)) / both)


@pytest.mark.parametrize("setting", ["def", "def+2pos"])
def test_padding_stays_low_at_the_size_of_sni(setting):
    tasks = drawn_lengths(478, 100, setting)
    shares = padding_shares(tasks, TaskBatchSampler(tasks, 4, 4, seed=0, pool_batches=100).plan(0))
    assert shares["input"] <= 0.06
    assert shares["input_target"] <= 0.12


def test_padding_tells_each_part_in_each_setting():
    results = padding("tiny", 2)
    assert len({result.case for result in results}) == 8
    assert all(0 <= result.low <= result.ratio <= result.high < 1 for result in results)
    bounds = {result.case: result.at_most for result in results if result.at_most}
    assert bounds == {"padding_input_def": 0.06, "padding_input_target_def": 0.12}
    assert {result.details["data"] for result in results} == {"lengths drawn as SNI's are distributed"}


def test_tokenise_tells_both_starts_and_what_it_read():
    results = tokenise("tiny", 1)
    assert [result.case for result in results] == ["tokenise", "first_batch"]
    assert [result.at_most for result in results] == [0.05, None]
    for result in results:
        assert set(result.details["seconds"]) == {"first", "second"}
        assert result.details["data"] == "16 generated tasks of 12 instances"

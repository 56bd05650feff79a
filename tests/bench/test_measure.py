import time

from table_cells import table_rows

from tagi_lightning.bench.measure import REPEATS, in_turn, summarize, table


def test_functions_take_turns_after_one_round_that_does_not_count():
    calls = []
    times = in_turn([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * 4
    assert len(times) == 3
    assert all(len(row) == 2 for row in times)


def test_times_are_seconds():
    [[short, long]] = in_turn([lambda: None, lambda: time.sleep(0.02)], repeats=1)
    assert long >= 0.02
    assert short < long


def test_a_result_is_the_median_with_its_spread():
    result = summarize("case", "a / b", [3.0, 1.0, 2.0], at_most=2.5, size="tiny")
    assert (result.ratio, result.low, result.high, result.repeats) == (2.0, 1.0, 3.0, 3)
    assert table_rows(table([result]))[2:] == [["case", "a / b", "2.000", "1.00 to 3.00", "2.50"]]
    assert result.to_json()["details"] == {"size": "tiny"}


def test_at_least_seven_pairs_are_the_default():
    assert REPEATS >= 7

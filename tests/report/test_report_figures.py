import pytest
from report_runs import TASKS, write_evaluation

from tagi_lightning.report.columns import build_columns
from tagi_lightning.report.figures import column_lines
from tagi_lightning.report.results import read_results
from tagi_lightning.report.tables import table_of


def lines_of(*runs):
    results, _ = read_results(runs)
    table = table_of(results, {})
    (column,), _ = build_columns(results, table)
    return {line.cell.row.title: line for line in column_lines(column, table)}


def test_seeds_are_averaged_before_tasks_are_drawn(tmp_path):
    # seed 0 gains on half of the tasks what seed 1 loses there: the averaged difference is 3 on every task
    for seed, sign in ((0, 1), (1, -1)):
        better = {task: 53.0 + sign * (20.0 if number < 3 else -20.0) for number, task in enumerate(TASKS)}
        write_evaluation(tmp_path / str(seed), "tagi", seed, better)
        write_evaluation(tmp_path / str(seed), "concatenated", seed, 50.0)
    found = lines_of(tmp_path / "0", tmp_path / "1")["concatenated"].difference
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_only_seeds_that_both_have_are_compared(tmp_path):
    write_evaluation(tmp_path / "0", "tagi", 0, 60.0)
    write_evaluation(tmp_path / "1", "tagi", 1, 90.0)
    write_evaluation(tmp_path / "0", "concatenated", 0, 50.0)
    found = lines_of(tmp_path / "0", tmp_path / "1")
    assert found["concatenated"].paired_seeds == (0,)
    assert found["concatenated"].difference.mean == pytest.approx(10.0)
    assert found["tagi"].difference is None


def test_the_difference_is_that_of_the_averages_shown(tmp_path):
    counts = dict(zip(TASKS, (1, 2, 3, 4, 5, 6), strict=True))
    scores = {task: 10.0 * number for number, task in enumerate(TASKS)}
    for metric in ("rougeL", "accuracy_mean"):
        run = tmp_path / metric
        write_evaluation(run, "tagi", score=scores, counts=counts, metric=metric)
        write_evaluation(run, "concatenated", score=20.0, tasks=TASKS, counts=counts, metric=metric)
        found = lines_of(run)
        gap = found["tagi"].mean - found["concatenated"].mean
        assert found["concatenated"].difference.mean == pytest.approx(gap)
    assert gap == pytest.approx(5.0)


def test_costs_are_those_measured(tmp_path):
    for seed, seconds in ((0, 1.0), (1, 3.0)):
        write_evaluation(tmp_path / str(seed), "tagi", seed, seconds=seconds, relative_flops=0.25)
        write_evaluation(tmp_path / str(seed), "concatenated", seed, seconds=4.0, relative_flops=1.0)
        write_evaluation(tmp_path / str(seed), "copy_input", seed, digest=None)
    found = lines_of(tmp_path / "0", tmp_path / "1")
    assert found["tagi"].flops == 0.25
    assert found["tagi"].seconds == (2.0, pytest.approx(2**0.5))
    assert found["tagi"].relative_time == 0.5
    assert found["copy_input"].seconds is found["copy_input"].flops is None
    assert (found["tagi"].instances, found["tagi"].tasks) == (12, 6)

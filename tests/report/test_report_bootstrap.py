import numpy as np
import pytest

from tagi_lightning.report.bootstrap import paired_bootstrap, student_quantile


def drawn(seed, tasks, difference, deviation=4.0):
    """Returns two systems whose scores differ by `difference` on average over all tasks there could be."""
    draw = np.random.default_rng(seed)
    names = [f"task{number}" for number in range(tasks)]
    other = dict(zip(names, draw.uniform(20, 80, tasks), strict=True))
    return {name: other[name] + draw.normal(difference, deviation) for name in names}, other


def test_the_same_difference_on_every_task_is_certain():
    other = {f"task{number}": 10.0 * number for number in range(6)}
    found = paired_bootstrap({task: score + 2.0 for task, score in other.items()}, other)
    assert (found.mean, found.low, found.high, found.detectable) == pytest.approx((2.0, 2.0, 2.0, 0.0))
    assert found.clear
    assert not paired_bootstrap(other, other).clear


@pytest.mark.parametrize("tasks", [6, 12])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(tasks):
    found = [paired_bootstrap(*drawn(seed, tasks, 3.0)) for seed in range(200)]
    covered = np.mean([result.low <= 3.0 <= result.high for result in found])
    assert 0.9 <= covered <= 0.99


def test_a_detectable_difference_is_found_in_four_of_five_sets_of_tasks():
    tasks, deviation = 12, 4.0
    typical = np.mean([paired_bootstrap(*drawn(seed, tasks, 0.0, deviation)).detectable for seed in range(100)])
    found = np.mean([paired_bootstrap(*drawn(seed, tasks, typical, deviation)).low > 0 for seed in range(200)])
    assert 0.7 <= found <= 0.9


def test_tasks_count_as_their_weights_say():
    reference = {"a": 10.0, "b": 20.0, "c": 0.0, "d": 0.0, "e": 0.0}
    other = dict.fromkeys(reference, 0.0)
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 4.0}
    assert paired_bootstrap(reference, other, weights).mean == pytest.approx(5.0)
    assert paired_bootstrap(reference, other).mean == pytest.approx(6.0)


def test_equal_input_gives_equal_output_in_any_order():
    reference, other = drawn(0, 8, 1.0)
    turned = dict(reversed(reference.items())), dict(reversed(other.items()))
    assert paired_bootstrap(reference, other) == paired_bootstrap(*turned)


def test_too_few_tasks_have_no_interval():
    found = paired_bootstrap(*drawn(0, 4, 1.0))
    assert found.low is found.high is found.detectable is None
    assert not found.clear


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="tasks differ: b"):
        paired_bootstrap({"a": 1.0, "b": 1.0}, {"a": 1.0})


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (9, 2.262), (29, 2.045), (118, 1.980)])
def test_quantiles_are_those_of_students_t(degrees, quantile):
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, rel=0.01)

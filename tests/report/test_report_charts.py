import struct

import pytest
from report_runs import TASKS, write_evaluation, write_stage

from tagi_lightning.report.charts import MOST_ROWS, draw_charts, score_chart, with_reference
from tagi_lightning.report.columns import build_columns
from tagi_lightning.report.curves import mean_curves, read_curves
from tagi_lightning.report.results import read_results
from tagi_lightning.report.tables import table_of


def charts_of(folder, *runs):
    results, _ = read_results(runs)
    table = table_of(results, {})
    (column,), _ = build_columns(results, table)
    folder.mkdir(exist_ok=True)
    return column, [name for name, _ in draw_charts(column, table, folder, "x")]


def width(path):
    return struct.unpack(">I", path.read_bytes()[16:20])[0]


def test_scores_categories_and_curves_are_drawn_1200_pixels_wide_and_alike_each_time(tmp_path):
    categories = {task: f"category {number % 2}" for number, task in enumerate(TASKS)}
    for seed in range(2):
        run = tmp_path / str(seed)
        weights = write_stage(run, seed=seed, curve=[(49, 2.0), (99, 1.0)])
        write_evaluation(run, "tagi", seed, categories=categories, weights=weights)
        write_evaluation(run, "concatenated", seed, categories=categories)
    _, names = charts_of(tmp_path / "one", tmp_path / "0", tmp_path / "1")
    assert names == ["x-scores.png", "x-categories-1.png", "x-curves-1.png"]
    assert all(width(tmp_path / "one" / name) == 1200 for name in names)
    charts_of(tmp_path / "two", tmp_path / "0", tmp_path / "1")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("seeds", "axis"), [(1, "ROUGE-L, one seed a row"), (2, "ROUGE-L, mean and standard deviation over seeds")]
)
def test_a_deviation_is_drawn_where_there_is_one(tmp_path, seeds, axis):
    runs = [tmp_path / str(seed) for seed in range(seeds)]
    for seed, run in enumerate(runs):
        write_evaluation(run, seed=seed)
    results, _ = read_results(runs)
    table = table_of(results, {})
    (column,), _ = build_columns(results, table)
    [(_, _, figure)] = score_chart(column, table)
    [panel] = figure.axes
    assert panel.get_xlabel() == axis
    assert bool(panel.collections) == (seeds > 1)  # the error bars


def test_without_categories_or_training_scores_alone_are_drawn(tmp_path):
    write_evaluation(tmp_path)
    assert charts_of(tmp_path / "out", tmp_path)[1] == ["x-scores.png"]


def test_lone_points_are_no_curves(tmp_path):
    weights = write_stage(tmp_path, curve=[(49, 2.0)])
    write_evaluation(tmp_path, weights=weights)
    assert charts_of(tmp_path / "out", tmp_path)[1] == ["x-scores.png"]


def test_curves_are_means_over_seeds_at_shared_steps_counted_from_1(tmp_path):
    for seed, curve in enumerate(([(9, 1.0), (19, 3.0)], [(9, 2.0), (19, 5.0), (29, 7.0)])):
        weights = write_stage(tmp_path / str(seed), seed=seed, curve=curve)
        write_evaluation(tmp_path / str(seed), seed=seed, weights=weights)
    column, _ = charts_of(tmp_path / "out", tmp_path / "0", tmp_path / "1")
    assert mean_curves(column.cells[0]) == {
        "train/loss": [(10, 1.5), (20, 4.0)],
        "val/rougeL": [(10, 15.0), (20, 40.0)],
    }


def test_a_stage_that_logged_nothing_has_no_curves(tmp_path):
    write_stage(tmp_path)
    assert read_curves(tmp_path / "distill") == {}


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1, 60])
def test_pages_hold_every_row_once_and_begin_with_the_reference(rows):
    titles = [f"row {number}" for number in range(rows)]
    pages = with_reference(titles, "row 0")
    assert all(page[0] == "row 0" and len(page) <= MOST_ROWS for page in pages)
    assert [title for page in pages for title in page[1:]] == titles[1:]
    assert [title for page in with_reference(titles, None) for title in page] == titles

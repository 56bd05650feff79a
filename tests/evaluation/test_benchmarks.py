import pytest

from tagi_lightning.evaluation.benchmarks import ANLI, MTEST11, STORY_CLOZE, average, describe, paper_lines, paper_table

WHOLE = [row for row in paper_table("table10") if all(task in row for task in MTEST11)]


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: f"{row['size']} {row['row']}")
def test_averages_recompute_the_papers_rows(row):
    found = average({task: row[task] for task in MTEST11})
    # tasks are printed to 0.1, so their mean may differ by that; one row's printed HyperT5 average is 0.3 off
    assert found["MTest11"] == pytest.approx(row["MTest11"], abs=0.11)
    assert found["HyperT5"] == pytest.approx(row["HyperT5"], abs=0.31)


def test_all_sizes_have_the_papers_own_row():
    assert {row["size"] for row in WHOLE if row["row"] == "T5-LM TAGI"} == {"base", "large", "xl"}


def test_with_a_task_missing_neither_average_is_given():
    accuracies = dict.fromkeys(MTEST11, 40.0)
    del accuracies["hellaswag"]
    found = average(accuracies)
    assert found == {"mean": pytest.approx(40.0), "k": 10, "missing": ["hellaswag"]}


def test_anli_counts_once_and_storycloze_not_at_all_in_the_hypert5_average():
    accuracies = dict.fromkeys(MTEST11, 0.0) | dict.fromkeys(ANLI, 80.0) | {STORY_CLOZE: 100.0}
    assert average(accuracies)["HyperT5"] == pytest.approx(10.0)


def test_other_tasks_do_not_count():
    assert average({"trec": 99.0}) == {}
    assert average({"trec": 99.0, "super_glue_rte": 50.0})["mean"] == 50.0


def test_lines_compare_over_the_same_tasks():
    by_task = {"super_glue_rte": {"accuracy_sum": 50.0, "accuracy_mean": 60.0}, "hellaswag": {"accuracy_sum": 30.0}}
    by_task["hellaswag"]["accuracy_mean"] = 20.0
    assert describe("TAGI", by_task) == [
        "TAGI, ranked by sum: mean over 2 of 11 40.0",
        "TAGI, ranked by mean per token: mean over 2 of 11 40.0",
    ]
    lines = paper_lines(by_task)
    assert "paper, T5-LM TAGI base: mean over 2 of 11 39.4" in lines  # (53.7 + 25.0) / 2
    assert any("quoted from FiD-ICL" in line for line in lines)


def test_with_all_tasks_both_averages_are_shown():
    assert "paper, T5-LM TAGI base: MTest11 45.6, HyperT5 average 46.7" in paper_lines(MTEST11)


def test_rows_without_rankings_give_no_lines():
    assert describe("TAGI", {"task": {"rougeL": 50.0}}) == []
    assert paper_lines(["task"]) == []

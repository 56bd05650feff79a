import pytest
import yaml
from commands import ROOT

from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS
from tagi_lightning.report.tables import read_table
from tagi_lightning.reproduce.rows import PlannedRow, planned_rows, table_names
from tagi_lightning.reproduce.systems import System

EXPERIMENTS = ROOT / "experiments"
TASKSETS = ("synthetic", "sni", "p3", "p3-synthetic", "custom")
TABLES = [(taskset, name) for taskset in TASKSETS for name in table_names(taskset, EXPERIMENTS)]


def row(overrides=None, setting="def", title="x"):
    return PlannedRow(title, System("x", "X", ()), "tagi", setting, overrides or {})


def test_a_slug_is_the_system_and_what_is_changed_of_it():
    assert row().slug == row(title="another title").slug == "x"
    overrides = {"chain": ["distill"], "distill": {"model": {"init_args": {"loss": {"lambda1": 0.5}}}}}
    assert row(overrides).slug == "x__chain=distill__distill.loss.lambda1=0.5"
    assert row({"tagi": {"decoder_memory": False}}, "def+2pos").slug == "x__tagi.decoder_memory=false__def+2pos"
    assert row({"data": {"categories": ["a b", "c/d"]}}).slug == "x__data.categories=a-b,c-d"


def test_a_long_slug_is_short_and_still_its_own():
    slugs = {row({"data": {"categories": [f"category {n}" for n in range(count)]}}).slug for count in (20, 21)}
    assert len(slugs) == 2
    assert all(len(slug) <= 100 for slug in slugs)


def test_all_stands_for_the_tables_that_go_with_a_task_set():
    assert table_names("synthetic", EXPERIMENTS) == ("ablation", "controls", "sni", "tasks")
    assert table_names("p3", EXPERIMENTS) == ("ablation", "p3", "tasks")


@pytest.mark.parametrize(("taskset", "name"), TABLES)
def test_every_table_names_systems_and_evaluations_that_exist(taskset, name):
    rows = planned_rows(read_table(name, EXPERIMENTS, taskset), "def", EXPERIMENTS)
    assert {row.evaluate for row in rows} <= {*SYSTEMS, *HEURISTICS}
    for one in rows:
        assert all(one.slug != other.slug or one.system == other.system for other in rows)


def test_a_system_that_is_not_there_is_told_with_its_row(tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [{"title": "mine", "system": "absent", "evaluate": "tagi"}]
    text = yaml.safe_dump({"title": "T", "metric": "rougeL", "rows": rows})
    (tmp_path / "tables" / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"row 'mine' of 'T': there is no system .*absent"):
        planned_rows(read_table("t", tmp_path, "sni"), "def", tmp_path)

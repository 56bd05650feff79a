import pytest
import yaml
from commands import ROOT

from tagi_lightning.evaluation.benchmarks import paper_table
from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS
from tagi_lightning.reproduce.systems import System
from tagi_lightning.reproduce.tables import Row, load_table, table_names

EXPERIMENTS = ROOT / "experiments"
TASKSETS = ("synthetic", "sni", "p3", "p3-synthetic", "custom")
TABLES = [(taskset, name) for taskset in TASKSETS for name in table_names(taskset, EXPERIMENTS)]


def row(overrides=None, setting="def", title="x"):
    return Row(title, System("x", "X", ()), "tagi", setting, overrides or {})


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
def test_every_table_names_systems_evaluations_and_rows_of_the_paper_that_exist(taskset, name):
    table = load_table(name, taskset, EXPERIMENTS)
    assert len({row.title for row in table.rows}) == len(table.rows)
    assert {row.evaluate for row in table.rows} <= {*SYSTEMS, *HEURISTICS}
    values = yaml.safe_load((EXPERIMENTS / "tables" / f"{table.name}.yaml").read_text(encoding="utf-8"))
    for entry in values["rows"]:
        if entry.get("paper"):
            printed, _, quoted = (
                entry["paper"].rpartition("/") if "table" in entry["paper"] else ("", "", entry["paper"])
            )
            assert quoted in {line["row"] for line in paper_table(printed or values["paper"])}, entry["title"]
    for one in table.rows:
        assert all(one.slug != other.slug or one.system == other.system for other in table.rows)


def test_a_task_set_has_its_own_settings_and_tables():
    assert load_table("sni", "sni", EXPERIMENTS).settings == ("def", "def+2pos")
    assert load_table("sni", "synthetic", EXPERIMENTS).settings == ("def",)
    assert load_table("tasks", "synthetic", EXPERIMENTS).name == "tasks-synthetic"
    with pytest.raises(ValueError, match="table p3 is for p3, p3-synthetic, not for sni"):
        load_table("p3", "sni", EXPERIMENTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": []}, "has no title, metric"),
        ({"title": "t", "metric": "m", "rows": [], "rosw": []}, "unknown keys rosw"),
        ({"title": "t", "metric": "m", "rows": [{"title": "r"}]}, "row 1 has no system, evaluate"),
        ({"title": "t", "metric": "m", "rows": [{"title": "r", "sistem": "x"}]}, "row 1: unknown keys sistem"),
        ({"title": "t", "metric": "m", "rows": [], "settings": ["def+3"]}, "choose from def, def.2pos"),
        ({"title": "t", "metric": "m", "rows": [], "tasksets": {"sni": {"seeds": 3}}}, "unknown keys seeds"),
    ],
)
def test_what_is_no_table_is_told_with_its_file(tmp_path, values, message):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_table("t", "sni", tmp_path)
    assert "t.yaml" in str(error.value)


def test_an_unknown_table_or_system_is_told_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="unknown table 'snt'; choose from: ablation, ablation-p3, controls, p3, sni"):
        load_table("snt", "sni", EXPERIMENTS)
    (tmp_path / "tables").mkdir()
    rows = [{"title": "r", "system": "absent", "evaluate": "tagi"}]
    text = yaml.safe_dump({"title": "t", "metric": "m", "rows": rows})
    (tmp_path / "tables" / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"there is no system .*absent"):
        load_table("t", "sni", tmp_path)

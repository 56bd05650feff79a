from pathlib import Path

import pytest
import yaml
from report_runs import write_evaluation

from tagi_lightning.report.files import ReportError
from tagi_lightning.report.results import read_results
from tagi_lightning.report.tables import paper_rows, read_table, table_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TABLES = sorted((EXPERIMENTS / "tables").glob("*.yaml"))


def write_table(folder, name="t", **values):
    usual = {"title": "T", "metric": "rougeL", "rows": [{"title": "TAGI", "system": "tagi", "evaluate": "tagi"}]}
    path = folder / "tables" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({k: v for k, v in (usual | values).items() if v is not None}))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_names_figures_that_the_paper_has(path):
    table = read_table(path.stem, EXPERIMENTS)
    assert table.reference is not None
    for row in table.rows:
        assert (row.paper is None) == (paper_rows(table, row)[1] == [])


def test_the_reference_is_the_marked_row_else_tagi_itself(tmp_path):
    rows = [
        {"title": "a", "system": "hint", "evaluate": "tagi"},
        {"title": "b", "system": "tagi", "evaluate": "tagi", "overrides": {"tagi": {"decoder_memory": False}}},
        {"title": "c", "system": "tagi", "evaluate": "tagi"},
    ]
    write_table(tmp_path, rows=rows)
    assert read_table("t", tmp_path).reference == "c"
    write_table(tmp_path, rows=[rows[0] | {"reference": True}, *rows[1:]])
    assert read_table("t", tmp_path).reference == "a"


def test_a_task_set_may_have_a_table_of_its_own(tmp_path):
    write_table(tmp_path, tasksets={"sni": {"settings": ["def+2pos"], "budget": {"distill": 3}}})
    write_table(tmp_path, "t-p3", title="other")
    assert (read_table("t", tmp_path).settings, read_table("t", tmp_path).budget) == (("def",), {})
    assert read_table("t", tmp_path, "sni").settings == ("def+2pos",)
    assert read_table("t", tmp_path, "sni").budget == {"distill": 3}
    with pytest.raises(ReportError, match="table t is for sni, not for synthetic"):
        read_table("t", tmp_path, "synthetic")
    assert read_table("t", tmp_path, "p3").title == "other"
    assert read_table("t", tmp_path, "sni").title == read_table("t", tmp_path).title == "T"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"metric": None}, "has no metric"),
        ({"metric": "bleu"}, "metric 'bleu' is unknown; choose from rougeL"),
        ({"rows": [{"title": "x", "system": "tagi"}]}, "row 1 has no evaluate"),
        ({"rows": [{"title": "x", "system": "tagi", "evaluate": "tagi"}] * 2}, "two rows have the same title"),
        ({"rows": [{"title": "x", "sistem": "tagi"}]}, "row 1: unknown keys sistem"),
        ({"rows": []}, "has no rows"),
        ({"rosw": []}, "unknown keys rosw"),
        ({"settings": ["def+3"]}, r"unknown settings def\+3; choose from def, def\+2pos"),
        ({"budget": {"distill": "many"}}, "the budget of distill is no whole number"),
        ({"tasksets": {"sni": {"seeds": 3}}}, "unknown keys seeds"),
        (
            {"rows": [{"title": "x", "system": "tagi", "evaluate": "tagi", "paper": "table2/ours"}]},
            "table2 has no row 'ours'",
        ),
    ],
)
def test_a_table_that_is_none_is_told(tmp_path, values, told):
    write_table(tmp_path, **values)
    with pytest.raises(ReportError, match=told):
        read_table("t", tmp_path)


def test_an_unknown_table_is_told_with_those_there_are(tmp_path):
    write_table(tmp_path, "sni")
    with pytest.raises(ReportError, match=r"unknown table 'snl'; choose from: sni"):
        read_table("snl", tmp_path)


def test_without_a_table_everything_evaluated_has_a_row(tmp_path):
    for system in ("tagi", "copy_input"):
        write_evaluation(tmp_path, system)
    for name in ("hint", "hint-large"):
        write_evaluation(tmp_path / "systems" / name, description={"name": name, "title": "HINT"})
    write_evaluation(tmp_path / "systems" / "hint", "teachers", description={"name": "hint", "title": "HINT"})
    results, _ = read_results([tmp_path])
    table = table_of(results, {"copy_input": "copy the input", "tagi": "TAGI", "teachers": "the teachers"})
    assert [row.title for row in table.rows] == [
        "copy the input",
        "TAGI",
        "HINT",
        "HINT: the teachers",
        "HINT (hint-large)",
    ]
    assert table.reference == "TAGI"
    assert all(sum(row.holds(result) for row in table.rows) == 1 for result in results)


def test_rows_are_known_by_what_they_change(tmp_path):
    for name, rank in (("a", 16), ("b", 32)):
        description = {"name": "tagi", "title": f"rank {rank}", "overrides": {"tagi": {"lora": {"rank": rank}}}}
        write_evaluation(tmp_path / "systems" / name, description=description)
    results, _ = read_results([tmp_path])
    assert [row.title for row in table_of(results, {}).rows] == ["rank 16", "rank 32"]

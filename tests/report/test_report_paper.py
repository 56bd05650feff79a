from statistics import fmean

import pytest
from report_runs import write_evaluation

from tagi_lightning.evaluation.benchmarks import MTEST11, paper_table, paper_tables, table10_row
from tagi_lightning.report.columns import build_columns
from tagi_lightning.report.files import ReportError
from tagi_lightning.report.paper import of_size, paper_cost, paper_figures, paper_rows, table_title
from tagi_lightning.report.results import read_results
from tagi_lightning.report.tables import Row, Table

MEASURES = {"def", "def+2pos", "MTest11", "HyperT5", "p3"}


def find(table, row, size="base"):
    return next(line for line in paper_table(table) if (line["row"], line["size"]) == (row, size))


@pytest.mark.parametrize("name", [name for name in paper_tables() if name != "table10"])
def test_every_figure_has_size_source_and_measure(name):
    lines = paper_table(name)
    assert all(line["size"] in ("base", "large", "xl", "xxl") and line["source"] for line in lines)
    assert all(MEASURES & line.keys() for line in lines)
    assert all(0 < line[key] < 100 for line in lines for key in MEASURES & line.keys())
    assert len({(line["row"], line["size"]) for line in lines}) == len(lines)


def test_the_papers_tables_repeat_each_other():
    ours = find("table2", "TAGI")
    for table, row in (("table7", "TAGI, rank 32"), ("figure3", "TAGI, 60 categories"), ("figure4", "TAGI, rank 32")):
        assert (find(table, row)["def"], find(table, row)["def+2pos"]) == (ours["def"], ours["def+2pos"])
    assert find("table8", "lambda1 5")["def+2pos"] == ours["def+2pos"]
    for row in ("TAGI", "HINT", "HyperTuning", "Tk-Instruct"):
        for setting in ("def", "def+2pos"):
            assert find("table4", row, "xl")[setting] == find("table2", row, "xl")[setting]
    assert find("figure5", "TAGI without alignment, steps 25k", "xxl")["def"] == find("table2", "TAGI", "xxl")["def"]
    for size in ("base", "large", "xl"):
        for row in ("T5-LM TAGI", "T0 TAGI", "T5-LM Metatrain", "T0 Full FT"):
            assert find("table3", row, size)["MTest11"] == find("table10", row, size)["MTest11"]


def test_table10_has_its_columns():
    row = table10_row(find("table10", "T5-LM TAGI"))
    assert (row["R1"], row["SC"]) == (31.5, 64.0)
    assert row["ANLI"] == pytest.approx(32.1, abs=0.05)
    assert row["MTest11"] == pytest.approx(45.6, abs=0.05)
    quoted = table10_row(find("table10", "HyperT5-LoRA", "large"))
    assert (quoted["ANLI"], quoted["R1"], quoted["MTest11"]) == (33.6, None, None)


@pytest.mark.parametrize(
    ("backbone", "sizes"),
    [
        ("tiny", ["base", "xl", "xxl"]),
        ("google/t5-base-lm-adapt", ["base"]),
        ("google/t5-xl-lm-adapt in bfloat16", ["xl"]),
        ("smollm2-135m", ["base", "xl", "xxl"]),
    ],
)
def test_a_backbone_stands_beside_its_own_size_or_all(backbone, sizes):
    lines = [line for line in paper_table("table2") if line["row"] == "TAGI"]
    assert [line["size"] for line in of_size(lines, backbone)] == sizes


def column(run, **evaluation):
    write_evaluation(run, **evaluation)
    results, _ = read_results([run])
    row = Row("TAGI", "tagi")
    return build_columns(results, Table("t", evaluation.get("metric", "rougeL"), (row,), None))[0][0]


def figures(paper, found, row="TAGI"):
    return [
        str(figure)
        for figure in paper_figures(Table("t", "rougeL", (), None, paper), Row("x", "tagi", paper=row), found)
    ]


def test_figures_are_those_of_the_setting_with_their_size_and_source(tmp_path):
    found = column(tmp_path, options={"backbone": {"name": "base"}, "setting": "def+2pos"})
    assert figures("table2", found) == ["42.5 (base)"]
    assert figures("table2", found, "HINT") == ["41.8 (base, source HINT)"]
    assert figures("table2", found, "table4/TAGI") == []
    assert figures("table8", column(tmp_path / "def", options={"backbone": {"name": "base"}}), "lambda1 2") == []


def test_costs_of_the_paper_are_found(tmp_path):
    found, row = column(tmp_path), Row("x", "tagi", paper="TAGI")
    table = Table("t", "rougeL", (), None, "table2")
    assert paper_cost(table, row, found, "relative_flops") == 0.39
    assert paper_cost(table, row, found, "relative_time") is None


def test_p3_is_compared_over_the_same_tasks(tmp_path):
    options = {"backbone": {"name": "base"}}
    whole = column(tmp_path / "a", metric="accuracy_mean", tasks=MTEST11, options=options)
    assert figures("table10", whole, "T5-LM TAGI") == ["45.6 (MTest11, base)"]
    tasks = ("hellaswag", "super_glue_rte")
    part = column(tmp_path / "b", metric="accuracy_mean", tasks=tasks, options=options)
    expected = fmean(find("table10", "T5-LM TAGI")[task] for task in tasks)
    assert figures("table10", part, "T5-LM TAGI") == [f"{expected:.1f} (mean of the same 2 tasks, base)"]
    assert figures("table3", part, "T5-LM TAGI") == []


def test_an_unknown_row_or_table_of_the_paper_is_told():
    row = Row("ours", "tagi", paper="TAGI-XL")
    with pytest.raises(
        ReportError, match=r"'ours': the paper's table2 has no row 'TAGI-XL'; it has No FT, Tk-Instruct"
    ):
        paper_rows(Table("t", "rougeL", (row,), None, "table2"), row)
    with pytest.raises(ReportError, match=r"have no 'table99'; there are table2"):
        paper_rows(Table("t", "rougeL", (row,), None, "table99"), row)


def test_tables_are_called_as_in_the_paper():
    assert [table_title(key) for key in ("table2", "table10", "figure3")] == ["Table 2", "Table 10", "Figure 3"]

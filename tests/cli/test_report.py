import csv

import pytest
import yaml
from commands import tagi
from report_runs import write_evaluation, write_stage

from tagi_lightning.evaluation.benchmarks import MTEST11


@pytest.fixture
def runs(tmp_path):
    """Two seeds of TAGI and two controls; returns them as --runs takes them."""
    for seed in range(2):
        run = tmp_path / f"x-s{seed}"
        weights = write_stage(run, seed=seed)
        write_evaluation(run, "tagi", seed, 60.0 + 2 * seed, weights=weights)
        write_evaluation(run, "concatenated", seed, 50.0)
        write_evaluation(run, "copy_input", seed, 10.0, digest=None)
    return f"{tmp_path / 'x-s0'},{tmp_path / 'x-s1'}"


def cells(markdown, heading):
    """Returns the rows of the first table below `heading` by their first cell, each by column."""
    lines = markdown.partition(f"{heading}\n")[2].lstrip().splitlines()
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.split("|")[1:-1]])
    return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:]}


def test_everything_evaluated_is_reported(tmp_path, runs, capsys):
    output = tmp_path / "out"
    words = ["report", "--runs", runs, "--output", str(output)]
    assert tagi(words) == 0
    assert "report of 6 evaluations" in capsys.readouterr().out
    text = (output / "report.md").read_text()
    assert f"command: `tagi report --runs {runs} --output {output}`" in text
    assert "- commit: " in text
    rows = cells(text, "## tiny, def, 12 instances of 6 tasks")
    assert list(rows) == ["copy the input", "backbone, instruction concatenated", "TAGI"]
    assert rows["TAGI"] == {
        "system": "TAGI", "ROUGE-L": "61.00 ± 1.41", "seeds": "0, 1", "instances": "12", "tasks": "6",
        "rel. FLOPs": "0.50", "decoding s": "2.00 ± 0.00", "rel. time": "1.00", "examples": "40",
        "trained parameters": "7",
    }  # fmt: skip
    compared = cells(text, "### TAGI against each row")
    assert compared["backbone, instruction concatenated"]["difference"] == "**+11.00**"
    assert compared["backbone, instruction concatenated"]["95 % interval"] == "+11.00 to +11.00"
    assert "distill 40" in text
    assert "(column1-scores.png)" in text
    assert (output / "column1-scores.png").is_file()
    lines = (output / "report.csv").read_text().splitlines()
    assert lines[0].startswith("# command: `tagi report")
    records = {row["system"]: row for row in csv.DictReader(line for line in lines if not line.startswith("#"))}
    assert (records["TAGI"]["mean"], records["TAGI"]["std"], records["TAGI"]["seeds"]) == ("61.0", "1.4142", "0 1")
    assert records["copy the input"]["reference_minus_this"] == "51.0"


def test_the_same_command_writes_the_same_files_and_removes_older_charts(tmp_path, runs):
    words = ["report", "--runs", runs, "--output", str(tmp_path / "out")]
    assert tagi(words) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "column9-scores.png").touch()
    assert tagi(words) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


def write_table(experiments, name, rows, **values):
    path = experiments / "tables" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"title": "The table", "metric": "rougeL", "rows": rows} | values))


def test_a_table_gives_rows_order_and_the_papers_figures(tmp_path, capsys):
    systems = tmp_path / "x-s0" / "systems"
    for name, score in (("tagi", 60.0), ("hint", 50.0), ("other", 1.0)):
        weights = write_stage(systems / name, steps=20 if name == "hint" else 10)
        write_evaluation(systems / name, score=score, weights=weights, description={"name": name, "title": name})
    rows = [
        {"title": "HINT-style", "system": "hint", "evaluate": "tagi", "paper": "HINT"},
        {"title": "HyperTuning-style", "system": "hypertuning", "evaluate": "tagi", "paper": None},
        {"title": "TAGI", "system": "tagi", "evaluate": "tagi", "paper": "TAGI"},
    ]
    write_table(tmp_path, "sni", rows, paper="table2", settings=["def"])
    words = ["report", "--runs", str(tmp_path / "x-s0"), "--table", "sni", "--experiments", str(tmp_path)]
    assert tagi([*words, "--output", str(tmp_path / "strict")]) == 0
    told = capsys.readouterr().err
    assert "saw 80 examples, the reference 40" in told
    text = (tmp_path / "strict" / "report.md").read_text()
    assert f"- {systems / 'other' / 'evaluate' / 'tagi'}: of no row or setting of this table" in text
    assert "Without a result: HINT-style; HyperTuning-style." in text

    assert tagi([*words, "--output", str(tmp_path / "all"), "--allow_budgets", "true"]) == 0
    text = (tmp_path / "all" / "report.md").read_text()
    assert text.startswith("# The table\n")
    found = cells(text, "## tiny, def, 12 instances of 6 tasks")
    assert list(found) == ["HINT-style", "TAGI"]
    assert found["TAGI"]["paper"] == "Table 2: 35.3 (base); 48.4 (xl); 52.3 (xxl)"
    assert found["HINT-style"]["paper"].startswith("Table 2: 33.3 (base, source HINT)")
    assert found["TAGI"]["paper's FLOPs"] == "0.39"
    assert (found["HINT-style"]["examples"], found["TAGI"]["examples"]) == ("80 †", "40")
    assert "† saw another number of examples" in text


def test_settings_that_were_run_instead_of_the_tables_own_are_reported(tmp_path, capsys):
    rows = [{"title": "TAGI", "system": "tagi", "evaluate": "tagi"}]
    write_table(tmp_path, "t", rows, settings=["def"])
    description = {"name": "tagi", "title": "TAGI"}
    write_evaluation(tmp_path / "x" / "systems" / "row", description=description, options={"setting": "def+2pos"})
    words = ["report", "--runs", str(tmp_path / "x"), "--table", "t", "--experiments", str(tmp_path)]
    words += ["--output", str(tmp_path / "out")]
    assert tagi(words) == 1
    assert "of no row or setting of this table" in capsys.readouterr().err
    assert tagi([*words, "--settings", "def,def+2pos"]) == 0
    assert "## tiny, def+2pos," in (tmp_path / "out" / "report.md").read_text()
    everything = ["report", "--runs", str(tmp_path / "x"), "--output", str(tmp_path / "all"), "--settings", "def"]
    assert tagi(everything) == 1  # what was run is of the other setting
    assert "of no row or setting of this table" in capsys.readouterr().err
    assert tagi([*words, "--settings", "def+3pos"]) == 1
    assert "unknown settings def+3pos; choose from def, def+2pos" in capsys.readouterr().err


def test_p3_stands_by_data_set_beside_the_papers(tmp_path):
    scores = {task: 10.0 + number for number, task in enumerate(MTEST11)}
    for seed in range(2):
        run = tmp_path / f"x-s{seed}" / "systems" / "tagi"
        shifted = {task: score + 2 * seed for task, score in scores.items()}
        options = {"backbone": {"name": "google/t5-base-lm-adapt"}}
        description = {"name": "tagi", "title": "TAGI"}
        write_evaluation(run, "tagi", seed, shifted, metric="accuracy_mean", options=options, description=description)
    rows = [{"title": "TAGI", "system": "tagi", "evaluate": "tagi", "paper": "T5-LM TAGI"}]
    write_table(tmp_path, "p3", rows, paper="table10", metric="accuracy_mean")
    runs = f"{tmp_path / 'x-s0'},{tmp_path / 'x-s1'}"
    words = ["report", "--runs", runs, "--table", "p3", "--experiments", str(tmp_path)]
    assert tagi([*words, "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    found = cells(text, "### By data set")
    columns = [
        "system",
        "ANLI",
        "R1",
        "R2",
        "R3",
        "HS",
        "CB",
        "COPA",
        "RTE",
        "WiC",
        "WSC",
        "WGD",
        "SC",
        "MTest11",
        "HyperT5",
    ]
    assert list(found["TAGI"]) == columns
    assert (found["TAGI"]["ANLI"], found["TAGI"]["SC"], found["TAGI"]["MTest11"]) == (
        "12.0 ± 1.4",
        "21.0 ± 1.4",
        "16.0 ± 1.4",
    )
    assert found["paper: T5-LM TAGI (base)"]["HyperT5"] == "46.7"
    assert found["paper: T5-LM TAGI (base)"]["CB"] == "44.5"
    assert "Table 10: 45.6 (MTest11, base)" in text


def test_damaged_and_older_evaluations_are_listed_and_the_rest_reported(tmp_path, runs, capsys):
    folder = tmp_path / "x-s0" / "evaluate"
    (folder / "tagi" / "metrics.json").write_text('{"overall": ')
    (folder / "concatenated" / "metrics.json").write_text('{"rougeL": 3.0}')
    assert tagi(["report", "--runs", runs, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "is damaged" in told
    assert "older layout, without overall, by_task, system, seed" in told
    left_out = (tmp_path / "out" / "report.md").read_text().partition("## Left out")[2]
    assert f"- {folder / 'tagi'}: " in left_out
    assert f"- {folder / 'concatenated'}: " in left_out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runs", "nowhere"], "nowhere is not there"),
        (["--runs", "RUNS", "--table", "nothing"], "unknown table 'nothing'; choose from: "),
        (["--runs", ","], "no run folder is named"),
    ],
)
def test_what_cannot_be_reported_is_told(tmp_path, runs, words, told, capsys):
    words = [runs if word == "RUNS" else word for word in words]
    assert tagi(["report", *words, "--output", str(tmp_path / "out")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_report_is_told_with_the_reasons(tmp_path, runs, capsys):
    write_table(tmp_path, "t", [{"title": "HINT", "system": "hint", "evaluate": "tagi"}])
    words = [
        "report",
        "--runs",
        runs,
        "--table",
        "t",
        "--experiments",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
    ]
    assert tagi(words) == 1
    told = capsys.readouterr().err
    assert "nothing is left to report of 'The table'" in told
    assert "of no row or setting of this table" in told

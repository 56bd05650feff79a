import json
import shutil

import pytest
import yaml
from commands import ROOT, SYNTHETIC, record_of, tagi
from table_cells import table_rows

from tagi_lightning.cli.reproduce import row_names
from tagi_lightning.report.tables import Row, Table

ROWS = [
    {"title": "as it is", "system": "no-ft", "evaluate": "concatenated"},
    {"title": "the input again", "system": "no-ft", "evaluate": "copy_input"},
    {"title": "adapters", "system": "hypter", "evaluate": "tagi", "reference": True},
]


@pytest.fixture(autouse=True)
def project(monkeypatch):
    monkeypatch.chdir(ROOT)


def write_experiments(folder, rows=ROWS):
    """Copies the project's configurations, with a table of two systems, on as small a task set as possible."""
    shutil.copytree(ROOT / "experiments", folder)
    for name, place in (("synthetic", ("data",)), ("synthetic-backbone", ("data", "init_args", "tasks"))):
        path = folder / "data" / f"{name}.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        module = values
        for key in place:
            module = module[key]
        module["init_args"]["synthetic"] = SYNTHETIC
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    table = {"title": "two systems", "metric": "exact_match", "settings": ["def"], "rows": rows}
    (folder / "tables" / "two.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return folder


def arguments(folder, task_set, *more):
    budget = "{pretrain-backbone: 3, distill: 2}"
    options = ["--table", "two", "--seeds", "0", "--budget", budget, "--jobs", "1"]
    options += ["--runs", folder / "runs", "--data", task_set, "--experiments", folder / "experiments"]
    return ["reproduce", *options, *more]


@pytest.mark.slow
def test_a_grid_runs_what_is_missing_goes_on_where_a_job_fails_and_reports(task_set, tmp_path, capsys):
    broken = {
        "title": "broken",
        "system": "hypter",
        "evaluate": "tagi",
        "overrides": {"tagi": {"decoder_memori": False}},
    }
    write_experiments(tmp_path / "experiments", [*ROWS, broken])
    assert tagi(arguments(tmp_path, task_set)) == 1
    told = capsys.readouterr().out
    shared = tmp_path / "runs" / "synthetic-tiny-s0"
    assert record_of(shared / "systems" / "hypter", "distill")["global_step"] == 2
    for name, system in (("no-ft", "concatenated"), ("no-ft", "copy_input"), ("hypter", "tagi")):
        metrics = json.loads(
            (shared / "systems" / name / "evaluate" / system / "metrics.json").read_text(encoding="utf-8")
        )
        assert metrics["overall"]["n"] == 60
    described = yaml.safe_load((shared / "systems" / "hypter" / "system.yaml").read_text(encoding="utf-8"))
    assert (described["name"], described["examples"]) == ("hypter", 2 * 64)
    log = shared / "systems" / "hypter__tagi.decoder_memori=false" / "logs" / "distill.log"
    assert "decoder_memori" in log.read_text(encoding="utf-8")
    assert f"log: {log}" in told
    assert "not run without it: synthetic-tiny-s0/systems/hypter__tagi.decoder_memori=false/evaluate" in told
    assert (tmp_path / "runs" / "reports" / "synthetic-tiny" / "two" / "report.md").is_file()
    write_experiments(tmp_path / "again")
    shutil.rmtree(tmp_path / "experiments")
    (tmp_path / "again").rename(tmp_path / "experiments")
    assert tagi(arguments(tmp_path, task_set)) == 0
    assert "started" not in capsys.readouterr().out


def test_the_estimate_runs_nothing(task_set, tmp_path, capsys):
    write_experiments(tmp_path / "experiments")
    assert tagi(arguments(tmp_path, task_set, "--estimate", "true")) == 0
    lines = capsys.readouterr().out.splitlines()
    jobs = ["shared pretrain-backbone", "no-ft evaluate", "hypter distill", "hypter evaluate"]
    cells = table_rows("\n".join(lines))[2:]
    assert [line[0] for line in cells] == jobs
    assert cells[0][1:4] == ["1", "0", "3"]
    assert lines[-2].startswith("4 jobs to run, 1 at a time: about ")
    assert "evaluate, whose time" in lines[-2]
    assert "start, data, validation and pictures come on top" in lines[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "snt"], "choose from"),
        (["--taskset", "snt"], "taskset 'snt' is unknown; choose from custom, p3"),
        (["--size", "huge"], "choose from base"),
        (["--seeds", "0,x"], "not whole numbers"),
        (["--settings", "def+3"], "choose from def"),
        (["--rows", "hint"], "no rows hint; choose systems or titles from no-ft | as it is"),
        (["--budget", "{distil: 3}"], "give positive numbers for"),
    ],
)
def test_a_wrong_choice_is_told_with_what_there_is(task_set, tmp_path, capsys, options, message):
    write_experiments(tmp_path / "experiments")
    assert tagi(arguments(tmp_path, task_set, *options)) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("given", ["a, b,plain,c", ["a, b", "plain", "c"]])
def test_rows_are_named_with_commas_between_and_within_them(given):
    rows = [Row(title, "concatenated", "no-ft") for title in ("a, b", "plain", "a", "b, c")]
    table = Table("t", "rougeL", tuple(rows), None)
    assert row_names(given, [table]) == ["a, b", "plain", "c"]
    assert row_names(None, [table]) == []


def test_an_unknown_evaluation_is_told_before_anything_runs(task_set, tmp_path, capsys):
    write_experiments(tmp_path / "experiments", [{"title": "x", "system": "no-ft", "evaluate": "tagy"}])
    assert tagi(arguments(tmp_path, task_set)) == 1
    assert "unknown systems tagy; choose from" in capsys.readouterr().err


def test_tables_that_share_runs_must_agree_on_their_budget(tmp_path, capsys):
    write_experiments(tmp_path / "experiments")
    for name, steps in (("one", 3), ("other", 4)):
        table = {"title": name, "metric": "rougeL", "rows": ROWS, "budget": {"distill": steps}}
        (tmp_path / "experiments" / "tables" / f"{name}.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    options = ["--table", "one,other", "--experiments", tmp_path / "experiments", "--runs", tmp_path / "runs"]
    assert tagi(["reproduce", *options]) == 1
    assert "tables disagree on the budget of distill: 3 and 4; give --budget" in capsys.readouterr().err

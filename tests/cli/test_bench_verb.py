import json

import pytest
from table_cells import table_rows

from tagi_lightning.bench import CASES, rank
from tagi_lightning.bench.measure import summarize
from tagi_lightning.cli import main


def test_the_benchmark_writes_its_figures_with_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rank, "BATCH", 2)
    output = tmp_path / "bench.json"
    assert main(["bench", "--cases", "[rank]", "--size", "tiny", "--repeats", "1", "--output", str(output)]) == 0
    assert table_rows(capsys.readouterr().out)[0][0] == "case"
    written = json.loads(output.read_text(encoding="utf-8"))
    assert [row["case"] for row in written["results"]] == ["rank_rte", "rank_anli", "rank_hellaswag"]
    assert written["threads"] >= 1
    assert written["versions"]["torch"]


def test_an_unknown_case_is_refused(capsys):
    assert main(["bench", "--cases", "[speed]"]) == 1
    assert "choose from flops" in capsys.readouterr().err


def test_one_case_needs_no_brackets_and_what_misses_its_aim_is_named(capsys, monkeypatch):
    monkeypatch.setattr(rank, "BATCH", 2)
    monkeypatch.setitem(CASES, "rank", lambda size, repeats: [summarize("slow", "a / b", [2.0], 1.0)])
    assert main(["bench", "--cases", "rank", "--size", "tiny", "--repeats", "1"]) == 0
    assert "above their aim" in (shown := capsys.readouterr().out)
    assert shown.rstrip().endswith("slow")


def test_no_repeats_are_refused_before_anything_runs(capsys):
    assert main(["bench", "--cases", "rank", "--repeats", "0"]) == 1
    assert "repeats must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--case", "[rank]"], ["--repeats", "many"]])
def test_unknown_options_are_errors(words):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *words])

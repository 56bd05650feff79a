import json
import time

import pytest

from tagi_lightning import bench_cases
from tagi_lightning.bench import REPEATS, in_turn, summarize, table
from tagi_lightning.cli import main


def test_functions_take_turns_after_one_round_that_does_not_count():
    calls = []
    times = in_turn([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * 4
    assert len(times) == 3
    assert all(len(row) == 2 for row in times)


def test_times_are_seconds():
    [[short, long]] = in_turn([lambda: None, lambda: time.sleep(0.02)], repeats=1)
    assert long >= 0.02
    assert short < long


def test_a_result_is_the_median_with_its_spread():
    result = summarize("case", "a / b", [3.0, 1.0, 2.0], at_most=2.5, size="tiny")
    assert (result.ratio, result.low, result.high, result.repeats) == (2.0, 1.0, 3.0, 3)
    assert "| case | a / b | 2.000 | 1.00 to 3.00 | 2.50 |" in table([result])
    assert result.to_json()["details"] == {"size": "tiny"}


def test_at_least_seven_pairs_are_the_default():
    assert REPEATS >= 7


def test_the_benchmark_writes_its_figures_with_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_cases, "BATCH", 2)
    output = tmp_path / "bench.json"
    assert main(["bench", "--cases", "[rank]", "--size", "tiny", "--repeats", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith("| case |")
    written = json.loads(output.read_text(encoding="utf-8"))
    assert [row["case"] for row in written["results"]] == ["rank_rte", "rank_anli", "rank_hellaswag"]
    assert written["threads"] >= 1
    assert written["versions"]["torch"]


def test_an_unknown_case_is_refused(capsys):
    assert main(["bench", "--cases", "[speed]"]) == 1
    assert "choose from rank" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--case", "[rank]"], ["--repeats", "many"]])
def test_unknown_options_are_errors(words):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *words])

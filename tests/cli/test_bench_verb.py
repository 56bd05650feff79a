import json

import pytest

from tagi_lightning.bench import rank
from tagi_lightning.cli import main


def test_the_benchmark_writes_its_figures_with_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rank, "BATCH", 2)
    output = tmp_path / "bench.json"
    assert main(["bench", "--cases", "[rank]", "--size", "tiny", "--repeats", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith("| case |")
    written = json.loads(output.read_text(encoding="utf-8"))
    assert [row["case"] for row in written["results"]] == ["rank_rte", "rank_anli", "rank_hellaswag"]
    assert written["threads"] >= 1
    assert written["versions"]["torch"]


def test_an_unknown_case_is_refused(capsys):
    assert main(["bench", "--cases", "[speed]"]) == 1
    assert "choose from flops" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--case", "[rank]"], ["--repeats", "many"]])
def test_unknown_options_are_errors(words):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *words])

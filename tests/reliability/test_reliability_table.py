import json
import subprocess
import sys

import reliability_table

RUN = {"points": 20, "examples": 10_000, "tests": 3, "skipped": 1, "minutes": 12.4}


def test_the_table_is_that_of_one_run_and_nothing_of_an_earlier_one_stays(tmp_path):
    document, whole = tmp_path / "doc.md", tmp_path / "whole.json"
    marks = (reliability_table.START, reliability_table.END)
    document.write_text(f"before\n{marks[0]}\n| an earlier row | 1 | well |\n{marks[1]}\nafter\n")
    whole.write_text(json.dumps({"run": RUN, "rows": {"an earlier row": {"tried": 1, "outcome": "well"}}}))
    parts = []
    for name, minutes in (("b", 30.6), ("a", 12.4)):
        parts.append(tmp_path / f"{name}.json")
        row = {"tried": 2, "outcome": f"outcome of {name}"}
        parts[-1].write_text(json.dumps({"run": RUN | {"minutes": minutes}, "rows": {f"row {name}": row}}))
    subprocess.run([sys.executable, reliability_table.__file__, document, whole, *parts], check=True)
    assert document.read_text().splitlines() == [
        "before",
        marks[0],
        "Of one run with `POINTS=20 EXAMPLES=10000`: 6 tests in 31 minutes, 2 skipped and none failed.",
        "",
        "| what was tried | times | outcome |",
        "|---|---|---|",
        "| row a | 2 | outcome of a |",
        "| row b | 2 | outcome of b |",
        marks[1],
        "after",
    ]
    assert list(json.loads(whole.read_text())["rows"]) == ["row a", "row b"]

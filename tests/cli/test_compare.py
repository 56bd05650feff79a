import json

from tagi_lightning.cli import main
from tagi_lightning.cli.compare import comparison_table, read_evaluations


def write(run, system, **values):
    folder = run / "evaluate" / system
    folder.mkdir(parents=True)
    overall = {"n": 3, "rougeL": 12.345, "exact_match": 100.0}
    told = {"overall": overall, "by_task": {}, "system": system, "seed": 0, "backbone_digest": "b0"}
    (folder / "metrics.json").write_text(json.dumps(told | values), encoding="utf-8")


def test_systems_stand_in_one_order_with_what_they_have(tmp_path, capsys):
    write(tmp_path, "tagi", relative_flops=0.5, seconds=2.0)
    write(tmp_path, "copy_input")
    (tmp_path / "evaluate" / "something_else").mkdir()
    assert main(["compare", "--run", str(tmp_path)]) == 0
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert set(rule) == {"|", "-", ":"}
    names = [cell.strip() for cell in heading.split("|")[1:-1]]
    heuristic, tagi = (dict(zip(names, (cell.strip() for cell in row.split("|")[1:-1]), strict=True)) for row in rows)
    shared = {"exact match": "100.00", "ROUGE-L": "12.35", "n": "3"}
    assert heuristic == shared | {"system": "copy the input", "rel. FLOPs": "-", "decoding s": "-"}
    assert tagi == shared | {"system": "TAGI", "rel. FLOPs": "0.50", "decoding s": "2.00"}


def test_columns_are_aligned(tmp_path):
    for system in ("tagi", "copy_input", "teachers"):
        write(tmp_path, system)
    lines = comparison_table(read_evaluations(tmp_path)).splitlines()
    bars = [[place for place, character in enumerate(line) if character == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)


def test_nothing_evaluated_names_the_command(tmp_path, capsys):
    assert main(["compare", "--run", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"make evaluate RUN={tmp_path}" in told.err


def answer(run, system, *ids):
    rows = [json.dumps({"task": "t", "id": id_, "references": ["a"]}) for id_ in ids]
    (run / "evaluate" / system / "predictions.jsonl").write_text("\n".join(rows), encoding="utf-8")


def test_rows_of_other_instances_bear_a_star(tmp_path, capsys):
    runs = [tmp_path / name for name in ("one", "same", "fewer", "others")]
    for run in runs:
        n = 2 if run.name == "fewer" else 3
        write(run, "tagi", overall={"n": n, "rougeL": 1.0}, by_task={"t": {"n": n, "rougeL": 1.0}})
        answer(run, "tagi", *("abx" if run.name == "others" else "abc")[:n])
    write(runs[0], "teachers", overall={"n": 9, "rougeL": 1.0}, by_task={"u": {"n": 9, "rougeL": 1.0}})
    others = ", ".join(map(str, runs[1:]))
    assert main(["compare", "--run", str(runs[0]), "--others", f"[{others}]"]) == 0
    told = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in told.splitlines()[2:] if line.startswith("|")]
    assert rows[0] == "TAGI"
    assert rows[-3:] == ["same: TAGI", "fewer: TAGI *", "others: TAGI *"]
    assert "* answered other instances than the rows without a star" in told
    assert main(["compare", "--run", str(runs[0]), "--others", f"[{runs[1]}]"]) == 0
    assert "*" not in capsys.readouterr().out


def test_rows_of_further_runs_bear_their_names(tmp_path, capsys):
    write(tmp_path / "one", "tagi", seconds=1.0)
    write(tmp_path / "two", "tagi", relative_flops=0.5)
    assert main(["compare", "--run", str(tmp_path / "one"), "--others", f"[{tmp_path / 'two'}]"]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["TAGI", "two: TAGI"]
    assert "rel. FLOPs" in heading
    assert "decoding s" in heading
    assert main(["compare", "--run", str(tmp_path / "one"), "--others", f"[{tmp_path / 'three'}]"]) == 1
    assert f"make evaluate RUN={tmp_path / 'three'}" in capsys.readouterr().err

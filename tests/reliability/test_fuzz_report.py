"""What a report reads of run folders, damaged in every way."""

import json

import pytest
import yaml
from fuzzing import MARKS, READ, REFUSED, damaged_bytes, damaged_file, damaged_json, fuzz, put, refused
from report_runs import write_evaluation, write_stage

from tagi_lightning.report.columns import build_columns
from tagi_lightning.report.document import report_text
from tagi_lightning.report.figures import column_lines
from tagi_lightning.report.files import ReportError
from tagi_lightning.report.results import read_results, told
from tagi_lightning.report.sheet import report_csv
from tagi_lightning.report.tables import table_of

pytestmark = MARKS


@pytest.fixture
def run(tmp_path):
    """A run with a trained system, which is to be damaged, and one without training."""
    weights = write_stage(tmp_path / "a-s0")
    write_evaluation(tmp_path / "a-s0", weights=weights, categories={f"task{n}": "c" for n in range(6)})
    write_evaluation(tmp_path / "a-s0", "no_instruction", score=40.0)
    (tmp_path / "a-s0" / "system.yaml").write_text(yaml.safe_dump({"name": "x", "overrides": {"a": 1}}))
    return tmp_path / "a-s0"


def report_of(results):
    """Returns the text and the table of a report."""
    table = table_of(results, {"tagi": "TAGI", "no_instruction": "none"})
    columns, left_out = build_columns(results, table)
    figures = [(column, column_lines(column, table)) for column in columns]
    return report_text(table, figures, left_out, {}, []) + report_csv(table, figures, []) if figures else ""


FILES = {
    "metrics.json": "evaluate/tagi/metrics.json",
    "predictions": "evaluate/tagi/predictions.jsonl",
    "configurations": "evaluate/tagi/config.yaml",
    "configurations of stages": "distill/config.yaml",
    "run.json": "distill/run.json",
    "descriptions of systems": "system.yaml",
}


@pytest.mark.parametrize("what", FILES)
def test_evaluations(record, run, what):
    path = run / FILES[what]
    content = path.read_bytes()
    [good] = [each for each in read_results([run])[0] if each.system == "no_instruction"]

    def attempt(damaged):
        put(path, damaged)
        results, left_out = read_results([run])
        assert good in results or what == "descriptions of systems"
        lines = told(left_out)
        assert all(0 < len(line) < 2_000 for line in lines)
        refused(lambda: report_of(results).encode(), ReportError)
        if len(results) == 2:
            return READ
        assert any(path.name in line for line in lines)
        return REFUSED

    if what == "predictions":
        row, *rest = content.decode().splitlines(keepends=True)
        first = damaged_json(json.loads(row)).map(lambda line: line + b"\n" + "".join(rest).encode())
        inputs = first | damaged_bytes(content)
    else:
        inputs = damaged_file(content)
    circle = yaml.safe_dump({"model": {"init_args": {"init_from": str(run / "distill" / "model")}}}).encode()
    known = [circle] if what == "configurations of stages" else []
    fuzz(record, f"{what} that a report reads", inputs, attempt, known)

"""Tables of experiments and the systems in their rows, damaged in every way."""

import shutil

import pytest
import yaml
from commands import ROOT
from fuzzing import MARKS, damaged_file, damaged_json, damaged_lines, fuzz_file

from tagi_lightning.report.files import ReportError
from tagi_lightning.report.tables import read_table
from tagi_lightning.reproduce.jobs import read_record
from tagi_lightning.reproduce.plan import Grid, plan
from tagi_lightning.reproduce.rows import PlannedRow, planned_rows, table_names
from tagi_lightning.reproduce.systems import SECTIONS, load_system

pytestmark = MARKS

TABLE = {
    "title": "Größe",
    "paper": "table4",
    "metric": "rougeL",
    "settings": ["def", "def+2pos"],
    "budget": {"distill": 500},
    "tasksets": {"sni": {"settings": ["def"], "budget": {"evaluate": 20}}, "custom": None},
    "rows": [
        {"title": "TAGI", "system": "tagi", "reference": True, "evaluate": "tagi", "paper": "TAGI"},
        {"title": "no λ2", "system": "tagi", "overrides": {"tagi": {"lora": {"rank": 8}}}, "evaluate": "lora_only"},
    ],
    "allow_budgets": False,
}
SYSTEM = {
    "title": "TAGI",
    "inherits": "base",
    "chain": ["pretrain", "distill"],
    "tagi": {"decoder_memory": True, "lora": {"rank": 4}},
    "distill": {"model": {"init_args": {"loss": {"lambda2": 0.5}}}},
    "logits_teacher": None,
}
PLANNED = {
    "title": "X",
    "chain": ["pretrain", "align", "distill"],
    "tagi": {"lora": {"rank": 4}, "hypernetwork": {"enabled": True}},
    "data": {"categories": 6, "tasks_per_batch": 4},
    "distill": {
        "model": {"init_args": {"loss": {"lambda1": 1.0, "lambda2": 0.5}, "teachers": "auto"}},
        "trainer": {"max_steps": 5, "accumulate_grad_batches": 2},
        "data": {"init_args": {"instances_per_task": 2}},
    },
    "evaluate": {"data": {"init_args": {"eval_batch_size": 4}}},
    "logits_teacher": "tk-instruct",
}
RECORD = {"digest": "0011", "seconds": 3.5, "steps": 40, "command": "tagi fit"}


@pytest.fixture
def experiments(tmp_path):
    for name, values in {
        "tables/t": TABLE,
        "systems/tagi": SYSTEM,
        "systems/base": {"title": "b", "chain": ["distill"], "data": {"categories": 6}},
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return tmp_path


def test_tables_that_are_reproduced(record, experiments):
    path = experiments / "tables" / "t.yaml"

    def read():
        assert set(table_names("sni", experiments)) <= {"t"}
        table = read_table("t", experiments, "sni")
        return table, planned_rows(table, table.settings[0], experiments)

    def check(found):
        table, rows = found
        assert all(isinstance(count, int) for count in table.budget.values())
        assert all(len(row.slug) < 200 for row in rows)
        "".join((table.title, *(row.title + row.slug for row in rows))).encode()

    errors = (ValueError, FileNotFoundError)
    fuzz_file(
        record, "tables that are reproduced", path, damaged_file(path.read_bytes()), read, errors, named="t",
        check=check,
    )  # fmt: skip


def test_tables_that_are_reported(record, experiments):
    path = experiments / "tables" / "t.yaml"

    def check(table):
        assert table.reference in (*(row.title for row in table.rows), None)
        "".join((table.title, *(row.title + row.overrides for row in table.rows))).encode()

    fuzz_file(
        record, "tables that are reported", path, damaged_file(path.read_bytes()),
        lambda: read_table("t", experiments, "sni"), ReportError, check=check,
    )  # fmt: skip


def test_systems(record, experiments):
    path = experiments / "systems" / "tagi.yaml"

    def check(system):
        assert all(isinstance(system.sections.get(name, {}), dict) for name in SECTIONS)
        for stage in system.chain:
            yaml.safe_dump(system.part(stage)).encode()

    fuzz_file(
        record, "systems of tables", path, damaged_file(path.read_bytes()), lambda: load_system(path),
        (ValueError, FileNotFoundError), named=path.parent, check=check,
    )  # fmt: skip


def test_plans(record, tmp_path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    grid = Grid("synthetic", "tiny", tmp_path / "data", runs=tmp_path / "runs", experiments=tmp_path / "experiments")
    path = grid.experiments / "systems" / "planned.yaml"

    def read():
        return plan(grid, [PlannedRow("planned", load_system(path), "tagi", "def")], [0])

    def check(jobs):
        assert all(isinstance(job.steps, int | None) for job in jobs)

    fuzz_file(
        record, "systems that a grid is planned of", path, damaged_json(PLANNED), read, (ValueError, FileNotFoundError),
        named="planned", check=check,
    )  # fmt: skip


def test_records_of_jobs(record, tmp_path):
    path = tmp_path / "distill.json"

    def check(found):
        assert found["seconds"] + 1 < float("inf")
        assert isinstance(found["digest"], str)

    fuzz_file(
        record, "records of a table's jobs", path, damaged_lines(RECORD),
        lambda: read_record(path), ValueError, check=check,
    )  # fmt: skip

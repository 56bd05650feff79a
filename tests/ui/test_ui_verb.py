import json
import sys

import pytest
from commands import tagi, task_set
from instructed_models import build_instructed

from tagi_lightning.cli.ui import known_tasks
from tagi_lightning.data.report import DataError
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.ui import serving

pytest.importorskip("streamlit", reason="the page needs the extra [ui]")

__all__ = ["task_set"]


@pytest.fixture
def started(monkeypatch):
    """Has the verb end where it would serve; what it would serve, where, and at which port."""
    calls = []
    monkeypatch.setattr(serving, "serve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(InstructedModel, "load", lambda *arguments, **options: build_instructed("t5-lora"))
    return calls


def test_it_serves_this_machine_alone_unless_told_otherwise(started, tmp_path, capsys):
    tasks = tmp_path / "known.jsonl"
    tasks.write_text(
        '{"instruction": "Say the first word."}\n{"instruction": "1 2", "task": "two"}\n', encoding="utf-8"
    )
    assert tagi(["ui", "--model", "m", "--tasks", tasks, "--max_inputs", 3]) == 0
    [(bench, host, port)] = started
    assert (host, port, bench.limits.inputs) == ("127.0.0.1", 8501, 3)
    assert bench.known.names == ("Say the first word.", "two")
    assert capsys.readouterr().err == "tagi ui: 2 known tasks\n"


def test_another_address_is_warned_of(started, capsys):
    assert tagi(["ui", "--model", "m", "--host", "0.0.0.0"]) == 0
    assert "everyone who reaches 0.0.0.0:8501 can use this model" in capsys.readouterr().err
    assert started[0][0].known is None


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--count", "0"], "--count must be at least 1"), (["--max_waiting", "0"], "--max_waiting must be at least 1")],
)
def test_wrong_options_are_told(started, capsys, options, told):
    assert tagi(["ui", "--model", "m", *options]) == 1
    assert told in capsys.readouterr().err
    assert not started


def test_without_streamlit_it_tells_how_to_get_it(started, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit", None)
    assert tagi(["ui", "--model", "m"]) == 1
    assert "pip install 'tagi-lightning[ui]'" in capsys.readouterr().err


def test_known_tasks_are_taken_from_a_folder_of_tasks_or_a_file_of_instructions(task_set, tmp_path):
    every = known_tasks(task_set, None)
    assert len({each.name for each in every}) == len(every) > 10
    assert all(each.text for each in every)
    few = known_tasks(task_set, 5)
    assert len(few) == 5
    assert set(few) < set(every)
    rows = [{"instruction": f"task {number}"} for number in range(9)]
    (tmp_path / "known.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [each.text for each in known_tasks(tmp_path / "known.jsonl", 3)] == ["task 0", "task 3", "task 6"]
    with pytest.raises(DataError):
        known_tasks(tmp_path / "nothing", None)

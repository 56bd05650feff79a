import json
import os
from pathlib import Path

import pytest

from tagi_lightning.data.task import Demonstration, Instance, Task
from tagi_lightning.evaluation.heuristics import copy_demonstration, copy_input
from tagi_lightning.evaluation.metrics import aggregate

TASKS = [
    Task(
        name="upper",
        category="Case",
        definitions=("Write it in capitals.",),
        demonstrations=(Demonstration("b", "B"), Demonstration("c", "C")),
        instances=(Instance("0", "x", ("X",)), Instance("1", "b", ("B", "BB"))),
    ),
    Task(
        name="rte/p",
        category="rte",
        definitions=("Is it true?",),
        demonstrations=(),
        instances=(Instance("0", "It is.", ("yes",), choices=("yes", "no"), gold=0),),
        dataset="rte",
        template="p",
    ),
]


def test_copy_input_answers_with_the_input():
    assert [row.prediction for row in copy_input(TASKS)] == ["x", "b", "It is."]


def test_copy_demonstration_answers_with_the_first_output_or_nothing():
    assert [row.prediction for row in copy_demonstration(TASKS)] == ["B", "B", ""]


@pytest.mark.parametrize("heuristic", [copy_input, copy_demonstration])
def test_rows_name_their_instance_and_rank_nothing(heuristic):
    rows = heuristic(TASKS)
    assert [(row.task, row.id, row.category) for row in rows] == [
        ("upper", "0", "Case"),
        ("upper", "1", "Case"),
        ("rte/p", "0", "rte"),
    ]
    assert [row.references for row in rows] == [("X",), ("B", "BB"), ("yes",)]
    assert (rows[2].dataset, rows[2].template) == ("rte", "p")
    assert not any(row.ranked or row.instruction_sha256 for row in rows)


@pytest.mark.realdata
@pytest.mark.skipif("TAGI_DATA" not in os.environ, reason="TAGI_DATA names no folder with sni/")
def test_sni_scores_lie_near_the_published():
    """Tk-Instruct: 28.54 for the demonstration and 14.20 for the input, on all 119 test tasks."""
    folder = Path(os.environ["TAGI_DATA"]) / "sni"
    names = (folder / "splits" / "default" / "test_tasks.txt").read_text(encoding="utf-8").split()
    tasks = [read_task(path) for name in names if (path := folder / "tasks" / f"{name}.json").exists()]
    assert aggregate(copy_demonstration(tasks))["overall"]["rougeL"] == pytest.approx(28.54, abs=2.0)
    assert aggregate(copy_input(tasks))["overall"]["rougeL"] == pytest.approx(14.20, abs=2.0)


def read_task(path):
    """The first 100 instances of an official file, read here by plain JSON."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Task(
        name=path.stem,
        category=found["Categories"][0],
        definitions=tuple(found["Definition"]),
        demonstrations=tuple(Demonstration(item["input"], item["output"]) for item in found["Positive Examples"]),
        instances=tuple(
            Instance(str(row), item["input"], tuple(item["output"]))
            for row, item in enumerate(found["Instances"][:100])
        ),
    )

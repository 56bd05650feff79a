import pytest
from commands import tagi
from table_cells import table_rows

from tagi_lightning.costs.scale_report import devices_table, storage_table
from tagi_lightning.costs.stage_step import Execution, Workload
from tagi_lightning.storage.run_layout import EVALUATE, STAGES


def test_the_table_has_a_row_for_every_stage(capsys):
    assert tagi(["scale", "--size", "tiny", "--devices", "4", "--strategy", "fsdp"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("T5 tiny on 4 GPU(s), fsdp")
    header, _, *lines = table_rows(said)
    assert header[:2] == ["stage", "trained M"]
    assert [line[0] for line in lines] == [*STAGES, EVALUATE]
    assert all(len(line) == len(header) for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "huge"], "choose from tiny"),
        (["--experiments", "nowhere"], "--experiments"),
        (["--devices", "0"], "must be positive"),
        (["--size", "tiny", "--devices", "2", "--strategy", "fsdp", "--quantization", "int8"], "no 8-bit backbone"),
    ],
)
def test_what_cannot_be_is_told(words, message, capsys):
    assert tagi(["scale", *words]) == 1
    assert message in capsys.readouterr().err


def test_tables_compare_strategies_and_forms():
    works = {"distill": Workload(2, 4, 7, 9, 3, rank=4)}
    header, _, line = table_rows(devices_table(works, "tiny", Execution(teachers=2), (1, 4)))
    assert header == ["stage", "1 GPU", "4 x ddp", "4 x fsdp", "4 x deepspeed_stage_2"]
    assert all(" / " in cell for cell in line[1:])
    lines = table_rows(storage_table(works, "tiny", ["distill"]))[2:]
    sums = [float(line[1].split(" / ")[0]) for line in lines]
    assert sums[0] >= sums[2] >= sums[3]

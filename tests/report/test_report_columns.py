import pytest
from report_runs import write_evaluation, write_stage

from tagi_lightning.options import EXECUTION
from tagi_lightning.report.columns import build_columns, mean_and_std
from tagi_lightning.report.results import read_results
from tagi_lightning.report.tables import Row, Table, table_of


def columns_of(*runs, table=None, **options):
    results, unread = read_results(runs)
    assert unread == []
    return build_columns(results, table or table_of(results, {}), **options)


def test_a_cell_is_mean_and_deviation_over_seeds(tmp_path):
    for seed, score in enumerate((40.0, 50.0, 60.0)):
        write_evaluation(tmp_path / str(seed), seed=seed, score=score)
    (column,), left_out = columns_of(*(tmp_path / str(seed) for seed in range(3)))
    assert left_out == []
    assert column.cells[0].seeds == [0, 1, 2]
    assert mean_and_std(column.cells[0].values("rougeL")) == (50.0, 10.0)
    assert column.title == "tiny, def, 12 instances of 6 tasks"


def test_one_seed_has_no_deviation():
    assert mean_and_std([3.0]) == (3.0, None)


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"options": {"backbone": {"name": "base"}}, "digest": "b1"}, "base, def"),
        ({"options": {"backbone": {"name": "tiny", "quantization": "int8"}}}, "tiny in int8, def"),
        ({"options": {"setting": "def+2pos"}}, "tiny, def+2pos"),
        ({"references": "others"}, "tiny, def"),
        ({"tasks": ("task0", "task1")}, "tiny, def, 4 instances of 2 tasks"),
        ({"options": {"model": {"init_args": {"generation": {"max_new_tokens": 9}}}}}, "tiny, def"),
    ],
)
def test_backbone_setting_data_and_decoding_have_columns_of_their_own(tmp_path, change, title):
    write_evaluation(tmp_path / "0")
    write_evaluation(tmp_path / "1", seed=1, **change)
    columns, left_out = columns_of(tmp_path / "0", tmp_path / "1")
    assert left_out == []
    assert [cell.seeds for column in columns for cell in column.cells] == [[0], [1]]
    assert columns[1].title.startswith(title)


def test_a_backbone_with_two_names_has_one_column(tmp_path):
    other = {"backbone": {"name": "runs/a/pretrain-backbone/model"}}
    write_evaluation(tmp_path / "a", "concatenated")
    write_evaluation(tmp_path / "b", "copy_input", digest=None, options=other)
    write_evaluation(tmp_path / "b", "tagi", options=other)
    (column,), left_out = columns_of(tmp_path / "a", tmp_path / "b")
    assert left_out == []
    assert {cell.row.evaluate for cell in column.cells} == {"concatenated", "copy_input", "tagi"}
    assert column.title.startswith("tiny, def")


def test_other_weights_of_a_backbone_are_left_out(tmp_path):
    write_evaluation(tmp_path, "tagi", digest="b0" * 8)
    write_evaluation(tmp_path, "concatenated", digest="b1" * 8)
    write_evaluation(tmp_path, "copy_input", digest=None)
    (column,), left_out = columns_of(tmp_path)
    assert {cell.row.evaluate for cell in column.cells} == {"tagi", "copy_input"}
    assert left_out[0].where.endswith("concatenated")
    assert "backbone b1b1b1b1b1b1, but b0b0b0b0b0b0" in left_out[0].reason


def test_seeds_have_backbones_of_their_own(tmp_path):
    for seed in range(2):
        write_evaluation(tmp_path / str(seed), "tagi", seed, digest=f"b{seed}")
        write_evaluation(tmp_path / str(seed), "concatenated", seed, digest=f"b{seed}")
    (column,), left_out = columns_of(tmp_path / "0", tmp_path / "1")
    assert left_out == []
    assert all(cell.seeds == [0, 1] for cell in column.cells)


def trained(run, seed=0, name=None, steps=10, **stage):
    description = {"name": name, "title": name} if name else None
    return write_evaluation(run, seed=seed, weights=write_stage(run, steps=steps, **stage), description=description)


def test_one_seed_with_two_configurations_is_left_out_whole(tmp_path):
    trained(tmp_path / "a", lr=0.1)
    trained(tmp_path / "b", lr=0.2)
    trained(tmp_path / "c", seed=1, lr=0.1)
    (column,), left_out = columns_of(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert column.cells[0].seeds == [1]
    assert [item.where.split("/")[-3] for item in left_out] == ["a", "b"]
    assert all(
        "different configurations: distill model.init_args.lr: 0.1 there, 0.2 here" in i.reason for i in left_out
    )


def test_the_same_seed_and_configuration_counts_once(tmp_path):
    trained(tmp_path / "a")
    trained(tmp_path / "b")
    (column,), left_out = columns_of(tmp_path / "a", tmp_path / "b")
    assert column.cells[0].seeds == [0]
    assert "counted once" in left_out[0].reason


@pytest.mark.parametrize("key", [*sorted(EXECUTION), "data.init_args.tasks.init_args.num_workers"])
def test_what_resuming_may_change_may_differ_between_seeds(tmp_path, key):
    for seed in range(2):
        value: object = seed
        for part in reversed(key.split(".")):
            value = {part: value}
        write_evaluation(tmp_path / f"s{seed}", seed=seed, options={"seed_everything": seed} | value)
    (column,), left_out = columns_of(tmp_path / "s0", tmp_path / "s1")
    assert left_out == []
    assert column.cells[0].seeds == [0, 1]


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"lr": 0.2}, "lr: 0.1 there, 0.2 here"),
        ({"lr": 0.1, "steps": 20}, "distill saw 40 examples there, 80 here"),
        ({"lr": 0.1, "stage": "align"}, "trained stages distill there, align here"),
    ],
)
def test_seeds_that_were_trained_otherwise_are_not_averaged(tmp_path, second, told):
    trained(tmp_path / "a", lr=0.1)
    trained(tmp_path / "b", seed=1, **second)
    (column,), left_out = columns_of(tmp_path / "a", tmp_path / "b")
    assert column.cells[0].seeds == [0]
    assert told in left_out[0].reason


def test_options_that_one_run_did_not_have_and_places_are_no_difference(tmp_path):
    for seed in range(2):
        start = write_stage(tmp_path / f"x-s{seed}" / "pretrain" / f"key{seed}", "pretrain", seed=seed)
        run = tmp_path / f"x-s{seed}" / "systems" / "row"
        newer = {"rank": 3} if seed else {}
        trained(run, seed, "tagi", start=start, init_from=start, **newer)
    (column,), left_out = columns_of(tmp_path / "x-s0", tmp_path / "x-s1")
    assert left_out == []
    assert column.cells[0].seeds == [0, 1]


@pytest.mark.parametrize("uses", [False, True])
def test_teachers_count_where_the_system_uses_them(tmp_path, uses):
    for seed, teachers in enumerate(("none", "runs/t/teachers/model")):
        options = {"model": {"init_args": {"teachers": teachers}}}
        facts = {"teachers": teachers} if uses else {}
        write_evaluation(tmp_path / f"s{seed}", seed=seed, options={"seed_everything": seed} | options, **facts)
    (column,), left_out = columns_of(tmp_path / "s0", tmp_path / "s1")
    assert column.cells[0].seeds == ([0] if uses else [0, 1])
    assert bool(left_out) is uses


def test_another_budget_is_left_out_or_marked(tmp_path):
    trained(tmp_path / "systems" / "a", name="tagi")
    trained(tmp_path / "systems" / "b", name="hint", steps=99)
    write_evaluation(tmp_path / "systems" / "c", "concatenated", description={"name": "no-ft", "title": "No FT"})
    (column,), left_out = columns_of(tmp_path)
    assert [cell.row.system for cell in column.cells] == ["no-ft", "tagi"]
    assert "saw 396 examples, the reference 40; --allow_budgets true" in left_out[0].reason
    (column,), left_out = columns_of(tmp_path, allow_budgets=True)
    assert left_out == []
    assert {cell.row.system: cell.other_budget for cell in column.cells} == {
        "no-ft": False,
        "tagi": False,
        "hint": True,
    }


def test_rows_that_name_the_same_run_all_show_it(tmp_path):
    write_evaluation(tmp_path / "systems" / "a", description={"name": "tagi"})
    rows = (Row("rank 32", "tagi", "tagi"), Row("TAGI", "tagi", "tagi"), Row("HINT", "tagi", "hint"))
    (column,), left_out = columns_of(tmp_path, table=Table("t", "rougeL", rows, None))
    assert [cell.row.title for cell in column.cells] == ["rank 32", "TAGI"]
    assert left_out == []


def test_what_is_of_no_row_setting_or_metric_is_told(tmp_path):
    write_evaluation(tmp_path, "tagi")
    write_evaluation(tmp_path, "concatenated")
    write_evaluation(tmp_path, "copy_input", metric="exact_match", digest=None)
    write_evaluation(tmp_path, "no_instruction", options={"setting": "def+2pos"})
    rows = tuple(Row(name, name) for name in ("tagi", "copy_input", "no_instruction"))
    (column,), left_out = columns_of(tmp_path, table=Table("t", "rougeL", rows, None, settings=("def",)))
    assert [cell.row.title for cell in column.cells] == ["tagi"]
    told = {item.where.split("/")[-1]: item.reason for item in left_out}
    assert told == {
        "concatenated": "of no row or setting of this table",
        "no_instruction": "of no row or setting of this table",
        "copy_input": "its answers have no rougeL",
    }

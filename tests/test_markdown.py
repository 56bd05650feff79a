from table_cells import table_rows

from tagi_lightning.markdown import aligned_table

LINES = [("system", "task", "score"), ("one", "add", "1.5"), ("a|b", "subtract", "10.25")]


def test_bars_stand_below_each_other():
    assert aligned_table(LINES, texts=2).splitlines() == [
        "| system | task     | score |",
        "|--------|----------|------:|",
        "| one    | add      |   1.5 |",
        "| a\\|b   | subtract | 10.25 |",
    ]


def test_no_text_breaks_a_table():
    assert [len(row) for row in table_rows(aligned_table(LINES))] == [3, 3, 3, 3]


def test_no_cell_breaks_a_table():
    text = aligned_table([["a", "b"], ["x\ny | z", "1"]])
    assert table_rows(text)[2] == ["x y \\| z", "1"]

from table_cells import table_rows

from tagi_lightning.callbacks.samples import ROWS, sample_table
from tagi_lightning.evaluation.predictions import Prediction


def row(number, prediction="a", reference="a"):
    return Prediction(str(number), f"task{number}", "c", "", "", "", prediction, (reference,))


def test_a_table_has_a_row_for_each_answer_and_says_whether_it_is_right():
    heading, _, *lines = table_rows(sample_table([row(0), row(1, "b")]))
    assert heading == ["task", "prediction", "reference", "right"]
    assert lines == [["task0", "a", "a", "yes"], ["task1", "b", "a", "no"]]


def test_text_never_breaks_the_table():
    [cells] = table_rows(sample_table([row(0, "a|b\n\nc\td", "x" * 500)]))[2:]
    assert cells == ["task0", "a\\|b c d", "x" * 200, "no"]


def test_many_answers_are_shown_evenly():
    lines = sample_table([row(number) for number in range(10 * ROWS)]).splitlines()[2:]
    assert [line.split()[1] for line in lines] == [f"task{number}" for number in range(0, 10 * ROWS, 10)]

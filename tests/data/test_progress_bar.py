import sys

import pytest
from tqdm import tqdm

from tagi_lightning.data import progress_bar as module
from tagi_lightning.data.progress_bar import progress_bar


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress_bar(range(3), "tokenising", "chunk")
    assert isinstance(bar, tqdm)
    assert list(bar) == [0, 1, 2]
    assert "tokenising: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("disable", [False, True])
def test_elsewhere_a_short_loop_says_nothing(capsys, disable):
    assert list(progress_bar([4, 5], "tokenising", "chunk", disable=disable)) == [4, 5]
    with progress_bar(None, "tokenising text", "B", total=7, unit_scale=True) as progress:
        progress.update(7)
    assert capsys.readouterr().err == ""


def test_elsewhere_a_long_loop_gets_lines(monkeypatch, capsys):
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    assert list(progress_bar(range(2), "tokenising 9 tasks", "chunk")) == [0, 1]
    with progress_bar(None, "tokenising text", "B", total=4_000_000, unit_scale=True) as progress:
        progress.update(1_500_000)
    list(progress_bar(iter("a"), "reading", "row"))
    assert capsys.readouterr().err.splitlines() == [
        "tokenising 9 tasks: 1 of 2 chunk",
        "tokenising 9 tasks: 2 of 2 chunk",
        "tokenising text: 1.50M of 4.00M B",
        "reading: 1 row",
    ]

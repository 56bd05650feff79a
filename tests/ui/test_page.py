from pathlib import Path

import pytest
from instructed_models import build_instructed

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.ui import serving
from tagi_lightning.ui.workbench import Limits, Workbench

testing = pytest.importorskip("streamlit.testing.v1", reason="the page needs the extra [ui]")

PAGE = Path(serving.__file__).with_name("page.py")


@pytest.fixture(scope="module")
def bench():
    """A workbench; not to be changed."""
    limits = Limits(input_characters=40, inputs=3)
    return Workbench(build_instructed("t5"), limits=limits, generation=GenerationConfig(max_new_tokens=4))


@pytest.fixture
def visit(bench, monkeypatch):
    """A function that opens the page for one more user."""
    monkeypatch.setattr(serving, "_served", [bench])
    return lambda: testing.AppTest.from_file(PAGE, default_timeout=60).run()


def button(page, label):
    return next(each for each in page.button if each.label == label)


def field(page, label):
    return next(each for each in page.text_area if each.label == label)


def adapt(page, text):
    field(page, "Instruction").set_value(text)
    return button(page, "Make the adapter").click().run()


def shown(page):
    return [each.value for each in page.code]


def test_users_do_not_see_each_other(visit):
    first, second = adapt(visit(), "Say the first word."), adapt(visit(), "Say the last word.")
    field(first, "Input 1").set_value("1 2")
    button(first, "Compare").click().run()
    second.run()
    assert not first.exception
    assert not second.exception
    assert shown(first)[:2] == ["Say the first word.", "1 2"]
    assert shown(second) == ["Say the last word."]
    assert shown(visit()) == []


def test_a_new_adapter_takes_the_place_of_the_old_one_s_answers_and_folder(visit):
    page = adapt(visit(), "Say the first word.")
    field(page, "Input 1").set_value("1 2")
    button(page, "Compare").click().run()
    button(page, "Make the PEFT folder").click().run()
    assert page.session_state["session"].archive
    assert len(shown(page)) > 1
    adapt(page, "Say the last word.")
    assert shown(page) == ["Say the last word."]
    assert page.session_state["session"].archive is None


def test_what_is_wrong_is_told_in_words_and_leaves_the_page_as_it_was(visit):
    page = adapt(visit(), "  ")
    assert [each.value for each in page.error] == [r"Say in words what the task is\."]
    adapt(page, "Say the first word.")
    assert not page.error
    adapt(page, "word " * 300)
    assert "leaves no room for an input" in page.error[0].value
    assert shown(page) == ["Say the first word."]
    field(page, "Input 2").set_value("x" * 41)
    button(page, "Compare").click().run()
    assert "Input 2 has 41 characters" in page.error[0].value
    assert not page.exception


def test_markup_in_a_message_is_no_markup(visit):
    page = adapt(visit(), "![x](http://elsewhere.example/x.png) $a$ :red[b] " * 60)
    assert r"\!\[x\]\(http\:\/\/elsewhere" in page.error[0].value


def test_inputs_can_be_added_up_to_the_limit(visit):
    page = adapt(visit(), "Say the first word.")
    assert [each.label for each in page.text_area if each.label.startswith("Input")] == ["Input 1", "Input 2"]
    button(page, "One more input").click().run()
    assert field(page, "Input 3")
    assert button(page, "One more input").disabled


def test_no_more_fields_are_shown_than_inputs_are_allowed(visit, bench, monkeypatch):
    monkeypatch.setattr(bench, "limits", Limits(inputs=1))
    page = adapt(visit(), "Say the first word.")
    assert [each.label for each in page.text_area if each.label.startswith("Input")] == ["Input 1"]
    assert button(page, "One more input").disabled

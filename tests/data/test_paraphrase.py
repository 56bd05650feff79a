import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tagi_lightning.data.paraphrase import PREFIX, count_paraphrases, paraphrase, rewrite
from tagi_lightning.data.task import Demonstration, Instance, Task

TASK = Task(
    "task",
    "category",
    ("write the first word", "find word one"),
    (Demonstration("a b", "a"),),
    (Instance("0", "c d", ("c",)),),
)


def test_a_second_phrasing_is_taken_where_there_is_one_and_all_else_stays():
    assert paraphrase(TASK) == replace(TASK, definitions=("find word one",))


def test_a_single_definition_is_rewritten_and_all_else_stays():
    alone = replace(TASK, definitions=("In this task, you are given a word. Generate its plural.",))
    assert paraphrase(alone) == replace(alone, definitions=("Here you get a word. Write its plural.",))


@pytest.mark.parametrize(
    "kept",
    ['"Generate"', "'should'", "“pick”", "`select`", "[write]", "{suitable}", "<choose>"],
)
def test_quoted_and_bracketed_text_stays(kept):
    assert rewrite(f"Generate {kept} or select it.") == f"Write {kept} or pick it."


def test_an_apostrophe_opens_no_quotation():
    assert rewrite("The author's text should be the writers' own.") == "The author's text must be the writers' own."


def test_only_whole_words_are_swapped_once_with_their_capitals():
    assert rewrite("Pick, don't rewrite. Choose") == "Choose, do not rewrite. Pick"


def test_a_definition_without_any_known_turn_gets_another_beginning():
    assert rewrite("Translate to French.") == f"{PREFIX}Translate to French."


@pytest.mark.parametrize("text", ["", "Write.", "Nothing known", "You should 'should' should"])
def test_the_rewrite_is_never_the_original_and_always_the_same(text):
    assert rewrite(text) == rewrite(text) != text


def test_counts_tell_own_phrasings_from_rewrites():
    counts = count_paraphrases([TASK, replace(TASK, definitions=("generate text",))])
    assert (counts.own, counts.rewritten, counts.changed_words) == (1, 1, 0.5)
    assert count_paraphrases([TASK]).changed_words == 0


@pytest.mark.realdata
def test_every_official_definition_changes_in_some_words_and_keeps_its_quotations():
    if "TAGI_DATA" not in os.environ:
        pytest.skip("TAGI_DATA is not set to a folder that holds sni/")
    folder = Path(os.environ["TAGI_DATA"]) / "sni"
    for path in sorted((folder / "tasks").glob("*.json")):
        definition = json.loads(path.read_text(encoding="utf-8"))["Definition"]
        text = definition if isinstance(definition, str) else definition[0]
        written = rewrite(text)
        assert written != text
        assert written.count('"') == text.count('"')
        assert 0.7 < len(written) / len(text) < 1.3

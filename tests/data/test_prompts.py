import os
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tagi_lightning.data.prompts import Frame, PromptAssembler, PromptForm
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.vocabulary import train_vocabulary

FORM = PromptForm()
CONNECTION, CUE, EOS = (100, 101), (102, 103), 1
LENGTHS = st.integers(1, 40)


def pieces(lengths, first):
    return [[first + number] * length for number, length in enumerate(lengths)]


def assembler(limit=60, demonstrations=2, output=10):
    return PromptAssembler(Frame.encoder_decoder(CONNECTION, CUE, EOS), demonstrations, limit, output)


def test_form_is_tk_instructs():
    assert FORM.definition(" Add the numbers ") == "Definition: Add the numbers.\n\n"
    assert FORM.definition("Add them!") == "Definition: Add them!\n\n"
    shown = FORM.demonstration(1, Demonstration("1 2", "3"))
    assert shown == "Positive Example 1 -\nInput: 1 2.\nOutput: 3.\n\n"
    assert FORM.connection + FORM.input("4 5?") + FORM.cue == (
        "Now complete the following example -\nInput: 4 5?\nOutput: "
    )


@given(LENGTHS, st.lists(LENGTHS, max_size=4), LENGTHS, st.integers(0, 4))
def test_prompt_shows_a_leading_run_of_demonstrations_as_long_as_fits(definition, lengths, text, allowed):
    build = assembler(60, allowed)
    demonstrations = pieces(lengths, 10)
    prompt = build.prompt([5] * definition, demonstrations, [6] * text)
    fixed = definition + len(CONNECTION) + len(CUE) + 1
    fitting = [n for n in range(min(allowed, len(lengths)) + 1) if fixed + text + sum(lengths[:n]) <= 60]
    shown = max(fitting, default=0)
    kept = min(text, 60 - fixed)
    assert prompt == [
        *[5] * definition,
        *chain(*demonstrations[:shown]),
        *CONNECTION,
        *[6] * kept,
        *CUE,
        EOS,
    ]
    assert len(prompt) <= 60


@given(LENGTHS, st.lists(LENGTHS, max_size=4))
def test_instruction_drops_a_demonstration_that_does_not_fit_and_all_after_it(definition, lengths):
    demonstrations = pieces(lengths, 10)
    instruction = assembler().instruction([5] * definition, demonstrations)
    shown = 0
    while shown < min(2, len(lengths)) and definition + sum(lengths[: shown + 1]) + 1 <= 60:
        shown += 1
    assert instruction == [*[5] * definition, *chain(*demonstrations[:shown]), EOS]


@given(st.lists(st.integers(3, 9), max_size=90))
def test_input_and_target_keep_their_ends_within_the_limits(text):
    bare = assembler().input(text)
    assert len(bare) <= 60
    assert bare[-3:] == [*CUE, EOS]
    assert bare[:-3] == text[: len(bare) - 3]
    target = assembler().target(text)
    assert target == [*text[:9], EOS]


def test_bare_input_stands_in_the_prompt_unchanged():
    bare, prompt = assembler().input([7, 8, 9]), assembler().prompt([5, 5], [], [7, 8, 9])
    assert prompt[-len(bare) :] == bare


WORDS = st.text(alphabet="ab c.?\n\té", max_size=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(["Definition Positive Example Input Output: aé b c. ? abc - cab 1 2"] * 3, folder, vocab_size=60)
    return AutoTokenizer.from_pretrained(folder)


@given(WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), WORDS)
def test_assembled_ids_are_those_of_the_assembled_text(tokenizer, definition, examples, text):
    demonstrations = [FORM.demonstration(n, Demonstration(*each)) for n, each in enumerate(examples, 1)]
    parts = [FORM.definition(definition), *demonstrations, FORM.input(text)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    build = PromptAssembler.from_tokenizer(tokenizer, 2)
    whole = "".join(parts[:-1]) + FORM.connection + parts[-1] + FORM.cue
    assert build.prompt(ids[0], ids[1:-1], ids[-1]) == tokenizer(whole)["input_ids"]
    assert build.input(ids[-1]) == tokenizer(parts[-1] + FORM.cue)["input_ids"]
    assert build.instruction(ids[0], ids[1:-1]) == tokenizer("".join(parts[:-1]))["input_ids"]


@pytest.mark.realdata
def test_assembled_ids_are_those_of_the_text_on_real_tasks():
    if not (os.environ.get("TAGI_DATA") and os.environ.get("TAGI_TOKENIZER")):
        pytest.skip("set TAGI_DATA to a folder holding sni/ and TAGI_TOKENIZER to T5's tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(os.environ["TAGI_TOKENIZER"])
    folder = Path(os.environ["TAGI_DATA"], "sni")
    report = DataReport(str(folder))
    tasks = read_sni(folder, allow_missing=True, max_train_instances=5, max_test_instances=5, report=report)
    build = PromptAssembler.from_tokenizer(tokenizer, 2, max_input_length=100_000)
    for task in [*tasks.train, *tasks.test]:
        shown = [FORM.demonstration(n, each) for n, each in enumerate(task.demonstrations[:2], 1)]
        parts = [FORM.definition(task.definitions[0]), *shown]
        texts = [FORM.input(instance.input) for instance in task.instances]
        own = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        whole = ["".join(parts) + FORM.connection + text + FORM.cue for text in texts]
        expected = tokenizer(whole, verbose=False)["input_ids"]
        assert [build.prompt(own[0], own[1:], each) for each in ids] == expected, task.name

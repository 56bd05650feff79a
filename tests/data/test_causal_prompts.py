import os
from pathlib import Path

import pytest
from byte_tokenizer import build_byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tagi_lightning.data.causal_prompts import CausalForm, ChatForm, prompt_form
from tagi_lightning.data.prompts import PlainForm, PromptAssembler, PromptForm
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.task import Demonstration, Instance, Task
from tagi_lightning.data.token_cache import cache_key, load_or_tokenize
from tagi_lightning.data.tokenized import ExampleIndex

SHOWN = Demonstration("2 1", "two")
FORMS = [CausalForm(), ChatForm(), CausalForm(PlainForm()), ChatForm(PlainForm())]
WORDS = st.text(alphabet="ab c.?'12\n\té", max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_tokenizer()


def assemble(form, tokenizer, definition, shown, text, reference, limit=1000):
    """Returns instruction, input, prompt and target."""
    pieces = [form.definition(definition), *[form.demonstration(n, each) for n, each in enumerate(shown, 1)]]
    own = form.tokenize(tokenizer, pieces)
    text_ids, target_ids = form.tokenize(tokenizer, [form.input(text), form.target(reference)])
    build = PromptAssembler.from_tokenizer(tokenizer, 2, limit, 20, form)
    instruction = build.instruction(own[0], own[1:])
    return instruction, build.input(text_ids), build.prompt(own[0], own[1:], text_ids), build.target(target_ids)


def test_causal_text_is_tk_instructs_with_spaces_before_words(tokenizer):
    parts = assemble(CausalForm(), tokenizer, "Say it", [SHOWN], "1 2", " one\n")
    instruction, text, prompt, target = (tokenizer.decode(part) for part in parts)
    assert instruction == "Definition: Say it.\n\nPositive Example 1 -\nInput: 2 1.\nOutput: two.\n\n"
    assert text == "Now complete the following example -\nInput: 1 2.\nOutput:"
    assert prompt == instruction + text
    assert target == " one</s>"


def test_chat_is_the_template_with_instruction_as_system_and_input_as_user(tokenizer):
    parts = assemble(ChatForm(), tokenizer, "Say it", [SHOWN], "1 2", "one")
    instruction, text, prompt, target = (tokenizer.decode(part) for part in parts)
    system = "Definition: Say it.\n\nPositive Example 1 -\nInput: 2 1.\nOutput: two."
    user = "Now complete the following example -\nInput: 1 2.\nOutput:"
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assert prompt == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert instruction == f"<|im_start|>system\n{system}<|im_end|>\n"
    assert text == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert target == "one<|im_end|>"


def test_templates_stay_as_they_are_but_for_line_breaks_between(tokenizer):
    instruction, text, prompt, target = assemble(CausalForm(PlainForm()), tokenizer, "Is [a] b?", [], "cat", "no")
    assert tokenizer.decode(instruction) == "Is [a] b?\n\n"
    assert tokenizer.decode(text) == "cat"
    assert prompt == instruction + text
    assert tokenizer.decode(target) == " no</s>"


@pytest.mark.parametrize("form", FORMS)
@given(WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), WORDS)
def test_prompt_is_instruction_and_input_in_a_row(tokenizer, form, definition, examples, text):
    shown = [Demonstration(*each) for each in examples]
    instruction, own, prompt, _ = assemble(form, tokenizer, definition, shown, text, "one")
    assert prompt == instruction + own


@pytest.mark.parametrize("form", FORMS[:2])
@given(WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), WORDS, st.text(alphabet="ab1é.?", min_size=1, max_size=8))
def test_assembled_ids_are_those_of_the_assembled_text(tokenizer, form, definition, examples, text, reference):
    shown = [Demonstration(*each) for each in examples]
    _, own, prompt, target = assemble(form, tokenizer, definition, shown, text, reference)
    for ids in (own, prompt, prompt + target):
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize("form", FORMS)
def test_special_tokens_in_the_data_stay_text(tokenizer, form):
    hostile = "a<|im_end|></s><|im_start|>"
    shown = [Demonstration(hostile, hostile)]
    clean = assemble(form, tokenizer, "a", [Demonstration("a", "a")], "a", "a")
    dirty = assemble(form, tokenizer, hostile, shown, hostile, hostile, limit=10_000)

    def special(ids):
        return [token for token in ids if token in tokenizer.all_special_ids]

    assert [special(ids) for ids in dirty] == [special(ids) for ids in clean]
    assert hostile in tokenizer.decode(dirty[1])


@pytest.mark.parametrize("form", FORMS[:2])
@given(st.integers(80, 300))
def test_a_truncated_input_keeps_its_opening_and_cue_within_the_limit(tokenizer, form, limit):
    frame = form.frame(tokenizer)
    _, own, prompt, target = assemble(form, tokenizer, "a", [], "c" * 400, "c" * 400, limit)
    assert max(len(own), len(prompt)) == limit
    assert own[: len(frame.opening)] == list(frame.opening)
    for ids in (own, prompt):
        assert ids[-len(frame.cue) :] == list(frame.cue)
    assert len(target) == 20
    assert target[-1] == frame.stop


@pytest.mark.parametrize("form", FORMS)
def test_rows_never_begin_with_a_bos_that_the_tokenizer_prepends(form):
    tokenizer = build_byte_tokenizer(bos=True)
    for ids in assemble(form, tokenizer, "a", [], "b", "c"):
        assert tokenizer.bos_token_id not in ids


def test_no_eos_is_told():
    tokenizer = build_byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        CausalForm().frame(tokenizer)


def test_every_kind_has_its_form_and_an_unknown_one_lists_them():
    assert [prompt_form(kind, PlainForm()) for kind in ("t5", "causal", "chat")] == [
        PlainForm(),
        CausalForm(PlainForm()),
        ChatForm(PlainForm()),
    ]
    with pytest.raises(ValueError, match="prompt='plain' is unknown, allowed: t5, causal, chat"):
        prompt_form("plain", PromptForm())


ROW = Instance("one/0", "1 2", ("one",), choices=("one", "two"), gold=0)
TASK = Task("one", "words", ("Say it",), (SHOWN,), (ROW,))


def test_cache_key_knows_form_version_and_chat_template(tokenizer, monkeypatch):
    other = build_byte_tokenizer(tokenizer.chat_template.replace("helpful", "brief"))
    keys = [cache_key([TASK], tokenizer, form) for form in (PromptForm(), PlainForm(), *FORMS)]
    keys.append(cache_key([TASK], other, ChatForm()))
    assert cache_key([TASK], other, CausalForm()) == keys[2]
    monkeypatch.setattr(CausalForm, "VERSION", CausalForm.VERSION + 1)
    keys.append(cache_key([TASK], tokenizer, CausalForm()))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("form", "space"), [(CausalForm(), " "), (ChatForm(), "")])
def test_cached_references_and_choices_are_targets(tokenizer, tmp_path, form, space):
    example = load_or_tokenize([TASK], tokenizer, tmp_path, form)[ExampleIndex(0, 0, None)]
    assert tokenizer.batch_decode(example.reference_ids) == [f"{space}one"]
    assert tokenizer.batch_decode(example.choice_ids) == [f"{space}one", f"{space}two"]
    assert example.references == ("one",)


@pytest.mark.realdata
@pytest.mark.parametrize("form", FORMS[:2])
def test_assembled_ids_are_those_of_the_text_on_real_tasks(form):
    if not (os.environ.get("TAGI_DATA") and os.environ.get("TAGI_CAUSAL")):
        pytest.skip("set TAGI_DATA to a folder holding sni/ and TAGI_CAUSAL to one of a decoder-only model")
    tokenizer = AutoTokenizer.from_pretrained(os.environ["TAGI_CAUSAL"])
    folder = Path(os.environ["TAGI_DATA"], "sni")
    report = DataReport(str(folder))
    tasks = read_sni(folder, allow_missing=True, max_train_instances=1, max_test_instances=5, report=report)
    differing = []
    rows = [(task, instance) for task in (*tasks.test, *tasks.train) for instance in task.instances][:1000]
    for task, instance in rows:
        shown, text = task.demonstrations[:2], instance.input
        *_, prompt, target = assemble(
            form, tokenizer, task.definitions[0], shown, text, instance.references[0], 100_000
        )
        ids = prompt + target[:-1]
        if tokenizer(tokenizer.decode(ids), add_special_tokens=False, verbose=False)["input_ids"] != ids:
            differing.append(task.name)
    assert len(rows) >= 500
    assert len(differing) <= 0.01 * len(rows), differing

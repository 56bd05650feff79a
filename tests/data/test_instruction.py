import json
import re

import pytest
from byte_tokenizer import build_byte_tokenizer

from data_modules import SyntheticDataModule
from tagi_lightning.data.instruction import (
    Instruction,
    InstructionPrompts,
    instruction_of_row,
    instruction_row,
    read_instructions,
    read_task_instruction,
)
from tagi_lightning.data.report import DataError
from tagi_lightning.data.synthetic import SyntheticConfig
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.tokenizer import load_tokenizer

CONFIG = SyntheticConfig(train_instances=2, test_instances=1, documents_per_task=1)
SHOWN = (Demonstration("a b", "b a"), Demonstration("c", "c"))
TEXTS = [
    "Reverse the words.",
    "Reverse the words",
    "  ../../etc/passwd",
    "CON",
    "翻译成中文",
    "把它倒过来",
    '\x00\n\t/\\:*?"<>|',
    "x" * 5000,
    "éàü ÀÉ",
    "--help",
    ".",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_byte_tokenizer()


def test_folder_names_are_safe_for_any_text_and_differ_where_instructions_do():
    instructions = [Instruction(text) for text in TEXTS]
    instructions += [Instruction(TEXTS[0], SHOWN[:1]), Instruction(TEXTS[0], SHOWN), Instruction(TEXTS[0], (), "CON")]
    names = [each.folder_name for each in instructions]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?-[0-9a-f]{12}", name) for name in names)
    assert max(map(len, names)) <= 53
    assert names[0].startswith("reverse-the-words-")
    assert Instruction(TEXTS[0]).folder_name == names[0]


def test_a_row_gives_its_instruction_back_and_one_that_was_changed_is_refused():
    for text in TEXTS:
        expected = Instruction(text, SHOWN, "a name")
        row = json.loads(json.dumps(instruction_row(expected)))
        assert instruction_of_row(row) == expected
    for change, told in (
        ({"instruction": "Another."}, "is the name of another instruction"),
        ({"instruction": 1}, "TypeError"),
        ({"demonstrations": [{"input": "a"}]}, "KeyError"),
        ({"demonstrations": ["a"]}, "TypeError"),
    ):
        with pytest.raises(ValueError, match=told):
            instruction_of_row(instruction_row(Instruction("Say it.")) | change)
    with pytest.raises(ValueError, match="TypeError"):
        instruction_of_row(None)


@pytest.mark.parametrize("prompt", ["t5", "causal", "chat"])
@pytest.mark.parametrize("setting", ["def", "def+2pos"])
@pytest.mark.parametrize("limit", [2048, 120])
def test_an_instruction_becomes_the_tokens_of_training(tmp_path_factory, prompt, setting, limit):
    """Also where demonstrations do not fit."""
    base = tmp_path_factory.getbasetemp() / "instructions"
    if not (base / "tokenizer").is_dir():
        build_byte_tokenizer().save_pretrained(base / "tokenizer")
    options = {"prompt": prompt, "setting": setting, "max_input_length": limit}
    data = SyntheticDataModule(str(base / "data"), str(base / "tokenizer"), CONFIG, **options)
    data.prepare_data()
    data.setup("test")
    tasks, shown = data.splits.test[:6], set()
    for task, tokenized in zip(tasks, data.tasks["test"].tasks, strict=False):
        instruction = Instruction(task.definitions[0], task.demonstrations)
        found = data.prompts.tokenize(data.tokenizer, instruction)
        assert found.ids == data.assembler.instruction(tokenized.definitions[0], tokenized.demonstrations)
        shown.add(found.shown)
    assert shown == ({0} if setting == "def" else {2}) or (limit == 120 and min(shown) < 2)


def test_an_instruction_without_room_for_inputs_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"instruction of \d+ tokens \('say the first.*in the 32 tokens.*shorten it"):
        InstructionPrompts("causal", max_input_length=32).tokenize(tokenizer, Instruction("say the first word " * 20))


def test_a_task_file_gives_its_first_definition_and_all_examples(tmp_path):
    document = {
        "Definition": ["Reverse.", "Turn round."],
        "Positive Examples": [{"input": each.input, "output": each.output} for each in SHOWN],
    }
    path = tmp_path / "task7_reverse.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_task_instruction(path) == Instruction("Reverse.", SHOWN, "task7_reverse")
    path.write_text(json.dumps({"Positive Examples": []}), encoding="utf-8")
    with pytest.raises(DataError, match=r"1 x task without definition(.|\n)*Super-NaturalInstructions"):
        read_task_instruction(path)
    with pytest.raises(DataError, match="file that cannot be read"):
        read_task_instruction(tmp_path / "absent.json")


def test_json_lines_give_instructions_each_once(tmp_path):
    rows = [
        {"instruction": "Reverse."},
        {"instruction": "Reverse.", "task": "t", "demonstrations": [{"input": "a b", "output": "b a"}]},
        {"instruction": "Reverse.", "demonstrations": None, "task": None, "input": "x", "output": "y"},
    ]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert read_instructions(path) == [Instruction("Reverse."), Instruction("Reverse.", SHOWN[:1], "t")]


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "many.jsonl"
    lines = [
        '{"instruction": "Reverse."}',
        "{",
        "[]",
        '{"task": "t"}',
        '{"instruction": " "}',
        '{"instruction": "a", "task": 3}',
        '{"instruction": "a", "demonstrations": [{"input": "x"}]}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_instructions(path)
    assert all(f"many.jsonl:{number}" in str(error.value) for number in (2, 3, 4, 5, 6, 7))
    assert "many.jsonl:1" not in str(error.value)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        read_instructions(path)


def test_a_tokenizer_without_padding_is_told_what_to_write(tmp_path):
    tokenizer = build_byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'has no padding token: name one as pad_token.*"pad_token": \'</s>\''):
        load_tokenizer(str(tmp_path))


def test_an_input_is_told_as_cut_where_the_instruction_leaves_it_too_little_room(tokenizer):
    prompts = InstructionPrompts("causal", "definition", max_input_length=200)
    text, long = "zq" * 40, Instruction("zq" * 75)
    assert not prompts.cuts(tokenizer, text)
    assert prompts.cuts(tokenizer, text, long)
    (whole,) = prompts.inputs(tokenizer, [text])
    (beside,) = prompts.inputs(tokenizer, [text], long)
    assert len(beside) == 200 > len(whole)

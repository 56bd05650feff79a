import inspect
import warnings
from dataclasses import replace

import pytest
import torch
from instructed_models import CONFIGS, build_instructed
from safetensors.torch import load_file, save_file
from table_cells import table_rows

import tagi_lightning
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.task import Demonstration
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inference.answering import Answerer
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.inference.requests import Request
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.peft_io import AdapterFolderError, Exporter, load_adapter, read_instruction
from tagi_lightning.peft_io.folders import WEIGHTS
from tagi_lightning.storage.hub import HubOptions
from tagi_lightning.storage.serialization import ModelFolderError, save_tagi

SHORT = GenerationConfig(max_new_tokens=6)
FIRST, LAST = Instruction("Say the first word."), Instruction("Say the last word.", (Demonstration("1 2", "2"),))
TOO_LONG = Instruction("word " * 300)
INPUTS = ["first word", "2 1", "example", "the", "say the word 1", "x"]


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request):
    """A model of each kind; not to be changed."""
    return build_instructed(request.param)


def requests(*instructions, choices=()):
    pairs = enumerate(zip(instructions, INPUTS, strict=False), start=1)
    return [Request(number, instruction, text, choices) for number, (instruction, text) in pairs]


def alone(loaded, request):
    """Returns the answer to one request by itself."""
    return loaded.generate(loaded.adapt(request.instruction), [request.input], SHORT)[0]


def test_strings_go_in_and_come_out_as_each_alone(loaded):
    adapter = loaded.adapt("Say the last word.", [("1 2", "2")])
    assert adapter.instruction == LAST
    answers = loaded.generate(adapter, INPUTS, SHORT)
    assert len(set(answers)) > 1
    assert answers == [loaded.generate(adapter, [text], SHORT)[0] for text in INPUTS]
    assert loaded.generate(adapter, [], SHORT) == []


def test_several_instructions_give_the_adapters_of_each_alone(loaded, distance):
    for found, instruction in zip(loaded.adapt_all([FIRST, LAST]), [FIRST, LAST], strict=True):
        expected = loaded.adapt(instruction)
        for left, right in zip(found.prepared.tensors(), expected.prepared.tensors(), strict=True):
            assert distance(left, right) < 1e-5


def test_an_adapter_tells_the_demonstrations_that_were_read_alone():
    loaded = build_instructed("t5")
    given = Instruction("Say it.", (Demonstration("1", "2"), Demonstration("3", "4")))
    assert loaded.adapt(given).instruction.demonstrations == given.demonstrations[:1]


def test_examples_in_any_form_are_the_same_ones_and_others_are_refused():
    loaded = build_instructed("t5")
    for shown in ([("1 2", "2")], [["1 2", "2"]], [{"input": "1 2", "output": "2"}], LAST.demonstrations):
        assert loaded.adapt(LAST.text, shown).instruction == LAST
    for wrong in ({"input": "1", "output": "2"}, ("1", "2"), [{"in": "1", "out": "2"}], ["ab"], [("a", 1)], [("a",)]):
        with pytest.raises(TypeError, match="a demonstration is a pair of texts"):
            loaded.adapt(LAST.text, wrong)
    with pytest.raises(ValueError, match="an Instruction brings its own demonstrations"):
        loaded.adapt(LAST, [("1 2", "2")])


def test_what_is_no_instruction_or_no_list_of_inputs_is_refused():
    loaded = build_instructed("t5-lora")
    for wrong in (None, ["a", "b"]):
        with pytest.raises(TypeError, match="an instruction is one text, got"):
            loaded.adapt(wrong)
    for empty in ("", " "):
        with pytest.raises(ValueError, match="the instruction is empty"):
            loaded.adapt(empty)
    adapter = loaded.adapt(LAST)
    for wrong in ("one string", [1], [["a"]]):
        with pytest.raises(TypeError, match="inputs are a list of texts"):
            loaded.generate(adapter, wrong)


@pytest.mark.parametrize(("shown", "given", "told"), [(0, 1, "it reads no examples"), (2, 1, "and this one has 1")])
def test_other_examples_than_those_of_training_are_warned_of(shown, given, told):
    loaded = build_instructed("t5-lora")
    loaded = replace(loaded, prompts=replace(loaded.prompts, demonstrations=shown))
    with pytest.warns(UserWarning, match=told):
        loaded.adapt(FIRST.text, [("1 2", "1")] * given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.adapt(FIRST.text, [("1 2", "1")] * shown)


def test_fid_icl_is_refused_and_a_student_of_it_is_not(tmp_path):
    loaded = build_instructed("t5")
    backbone, folder = loaded.model.backbone, str(tmp_path / "backbone")
    backbone.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    backbone.name = folder
    off = {"hypernetwork": HypernetworkConfig(enabled=False), "fusion": FusionConfig(enabled=False)}
    fid = TagiModel(backbone, TagiConfig(memory_of="demonstrations", **off))
    # the paper's chain has such a model as its teacher; what it trains reads instructions
    for name, model in (("fid", fid), ("student", loaded.model)):
        save_tagi(model, tmp_path / name, prompts=InstructionPrompts("t5", "plain"))
    with pytest.raises(ModelFolderError, match=r"fid reads a task's demonstrations themselves \(tagi.memory_of=demo"):
        InstructedModel.load(tmp_path / "fid")
    assert InstructedModel.load(tmp_path / "student").adapt("Say it.").lora is not None


def test_requests_of_mixed_instructions_are_answered_in_their_order(loaded):
    asked = requests(FIRST, LAST, FIRST, FIRST, LAST, FIRST)
    answerer = Answerer(loaded, SHORT)
    assert [each.text for each in answerer(asked)] == [alone(loaded, each) for each in asked]
    assert (answerer.cache.misses, answerer.cache.hits) == (2, 0)
    assert [each.text for each in answerer(asked[:1])] == [alone(loaded, asked[0])]
    assert (answerer.cache.misses, answerer.cache.hits) == (2, 1)


def test_a_request_that_cannot_be_answered_does_not_harm_the_others(loaded):
    asked = requests(FIRST, TOO_LONG, FIRST, LAST, LAST)
    answers = Answerer(loaded, SHORT)(asked)
    assert "leaves no room for an input" in str(answers[1])
    for place in (0, 2, 3, 4):
        assert answers[place].text == alone(loaded, asked[place])


def test_choices_are_ranked_beside_requests_without_any(loaded):
    ranked = [Request(number, FIRST, text, ("yes", "no", "1 2 3")) for number, text in enumerate(INPUTS[:2])]
    plain = requests(FIRST, LAST)
    answers = Answerer(loaded, SHORT)([ranked[0], plain[0], ranked[1], plain[1]])
    assert [answers[1].text, answers[3].text] == [alone(loaded, each) for each in plain]
    assert answers[1].to_json(plain[0]).keys() == {"id", "output"}
    for answer in (answers[0], answers[2]):
        best = max(range(3), key=answer.logprob_mean.__getitem__)
        assert answer.text == ranked[0].choices[best]
        assert all(total <= mean <= 0 for total, mean in zip(answer.logprob_sum, answer.logprob_mean, strict=True))
    assert answers[0].to_json(ranked[0]).keys() == {"id", "output", "choices", "logprob_sum", "logprob_mean"}


def test_an_input_that_is_not_read_whole_is_told(loaded):
    texts = ["x", "1 2 " * 300, "1 " * 60]
    asked = [Request(number, FIRST, text) for number, text in enumerate(texts)]
    assert [each.cut for each in Answerer(loaded, SHORT)(asked)] == [False, True, False]


def test_inputs_are_the_tokens_of_training():
    loaded = build_instructed("t5-prompt")
    prompts, tokenizer = loaded.prompts, loaded.tokenizer
    text = "Definition: Say the last word.\n\nPositive Example 1 -\nInput: 1 2.\nOutput: 2.\n\n"
    text += "Now complete the following example -\nInput: 3 4.\nOutput: "
    [row] = loaded.input_rows([LAST], ["3 4"])
    assert tokenizer.decode(row) == f"{text}</s>"
    assert tokenizer.decode(prompts.inputs(tokenizer, ["3 4"])[0]) == "3 4.\nOutput: </s>"
    plain = InstructionPrompts("t5", "plain")
    assert tokenizer.decode(plain.inputs(tokenizer, ["3 4"], LAST)[0]) == "3 4</s>"
    assert tokenizer.decode(prompts.targets(tokenizer, ["5"])[0]) == "5</s>"


def test_a_saved_peft_folder_is_the_adapter(tmp_path):
    loaded = build_instructed("t5")
    adapter = loaded.adapt(LAST)
    loaded.save_peft(adapter, tmp_path / "adapter", facts={"made for": "a test"})
    assert ["made for", "a test"] in table_rows((tmp_path / "adapter" / "README.md").read_text())
    back = load_adapter(tmp_path / "adapter", loaded.model)
    for left, right in zip(back.tensors(), adapter.prepared.tensors(), strict=True):
        assert torch.equal(left, right)


def test_a_saved_adapter_comes_back_with_its_instruction_and_answers_the_same(loaded, tmp_path):
    adapter = loaded.adapt(LAST)
    loaded.save_peft(adapter, tmp_path / "adapter")
    back = loaded.load_peft(str(tmp_path / "adapter"))
    assert back.instruction == adapter.instruction
    assert loaded.generate(back, INPUTS, SHORT) == loaded.generate(adapter, INPUTS, SHORT)
    named = Instruction('翻译\n"\\\x00', (Demonstration("é", ""),), "task 1")
    loaded.save_peft(loaded.adapt(named), tmp_path / "named")
    assert loaded.load_peft(tmp_path / "named").instruction == named


def test_an_adapter_that_was_trained_further_comes_back_as_the_lora_alone(tmp_path):
    loaded = build_instructed("t5")
    lora = loaded.adapt(LAST).lora
    Exporter(loaded).write_lora(lora, LAST, tmp_path / "trained", {})
    back = loaded.load_peft(tmp_path / "trained")
    assert (back.instruction, back.prepared.fusion, back.prepared.memory) == (LAST, None, None)
    assert all(torch.equal(back.lora.b[site], factor) for site, factor in lora.b.items())
    assert loaded.generate(back, ["1 2"], SHORT)


def test_an_adapter_that_does_not_tell_its_instruction_wants_it_given(tmp_path):
    loaded = build_instructed("t5-prompt")
    adapter, folder = loaded.adapt(LAST), tmp_path / "adapter"
    loaded.save_peft(adapter, folder)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})
    assert read_instruction(folder) is None
    with pytest.raises(
        AdapterFolderError, match=r"does not tell its instruction.*load_peft\(folder, instruction=\.\.\.\)"
    ):
        loaded.load_peft(folder)
    assert loaded.load_peft(folder, FIRST.text).instruction == FIRST
    back = loaded.load_peft(folder, LAST)
    assert loaded.generate(back, INPUTS, SHORT) == loaded.generate(adapter, INPUTS, SHORT)


@pytest.mark.parametrize(
    ("told", "message"), [("{", "damaged at its instruction"), ('{"name": "a"}', "KeyError.*make it again")]
)
def test_a_damaged_instruction_is_refused(tmp_path, told, message):
    loaded = build_instructed("t5-lora")
    loaded.save_peft(loaded.adapt(LAST), tmp_path / "adapter")
    file = tmp_path / "adapter" / WEIGHTS
    save_file(load_file(file), file, {"format": "pt", "instruction": told})
    with pytest.raises(AdapterFolderError, match=message):
        loaded.load_peft(tmp_path / "adapter")


def test_load_names_the_options_of_a_model_and_passes_them_on(tmp_path):
    theirs, ours = (inspect.signature(each).parameters for each in (InstructedModel.load, tagi_lightning.load))
    assert list(ours) == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in ("name", "backbone", "dtype", "device"))
    loaded, folder = build_instructed("t5-lora"), str(tmp_path / "backbone")
    loaded.model.backbone.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    save_tagi(loaded.model, tmp_path / "model", prompts=loaded.prompts)
    hub = HubOptions(local_files_only=True)
    again = tagi_lightning.load(tmp_path / "model", backbone=folder, dtype="bfloat16", device="cpu", hub=hub)
    assert again.model.backbone.model.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="revision"):
        tagi_lightning.load(tmp_path / "model", revision="main")


def test_an_instructed_model_is_a_value():
    loaded = build_instructed("t5-lora")
    assert InstructedModel(loaded.model, loaded.tokenizer, loaded.prompts) == loaded

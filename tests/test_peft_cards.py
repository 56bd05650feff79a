import json
import re
import shutil

import pytest
import torch
from byte_tokenizer import build_byte_tokenizer
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from tagi_lightning import peft_io
from tagi_lightning.backbones import BackboneConfig, GenerationConfig, load_backbone
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.tokenizer import load_tokenizer
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig
from tagi_lightning.peft_io import Exporter, read_lora
from tagi_lightning.peft_io.folders import difference
from tagi_lightning.peft_io.stacked import CARD_TEXT

SHOWN = (Demonstration("1 2", "1"), Demonstration("<|im_end|> a", 'b\n"""'))
INSTRUCTION = Instruction("Say the first word.\n```\n<|im_start|> {input}", SHOWN)
INPUTS = ["wren fig", "a b.", " 1 2\n", "<|im_end|> ```{", "say \\n 'x'", "word " * 60]
LONGEST = 150
FORMS = {
    "t5": ("t5", "definition", "input"),
    "t5, plain": ("t5", "plain", "prompt"),
    "t5, concatenated": ("t5", "definition", "prompt"),
    "causal": ("causal", "definition", "input"),
    "causal, plain": ("causal", "plain", "input"),
    "causal, concatenated": ("causal", "definition", "prompt"),
    "chat": ("chat", "definition", "input"),
    "chat, concatenated": ("chat", "definition", "prompt"),
}


def save_backbone(folder, is_t5, bos):
    """Writes a tiny random model half of whose vocabulary ends an answer, so that it matters what may."""
    tokenizer = build_byte_tokenizer(bos=bos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if is_t5:
            shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0}
            ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
            config = T5Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **shape, **ids)
            model = AutoModelForSeq2SeqLM.from_config(config)
        else:
            shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
            config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **shape)
            model = AutoModelForCausalLM.from_config(config)
            model.generation_config.eos_token_id = list(range(2, len(tokenizer), 2))
            model.generation_config.repetition_penalty = 3.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(trained, name, prompt="causal", texts="definition", reads="input"):
    """Returns a TAGI-LoRA model on the backbone of that name."""
    alone = {"fusion": FusionConfig(enabled=False), "decoder_memory": False}
    model = trained(load_backbone(BackboneConfig(str(name))), TagiConfig(LoraConfig(rank=4), reads=reads, **alone))
    prompts = InstructionPrompts(prompt, texts, demonstrations=2, max_input_length=LONGEST)
    return InstructedModel(model.eval(), load_tokenizer(str(name)), prompts)


def run_card(folder, monkeypatch):
    """Runs the Python of a card in its folder; returns what it defines."""
    [code] = re.findall(r"^```python\n(.*?)\n```$", (folder / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(folder)
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    return found


@pytest.mark.parametrize("one_line", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_a_card_reads_the_same_tokens_and_gives_the_same_answers(
    trained, tmp_path, monkeypatch, form, bos, one_line
):
    prompt, texts, reads = FORMS[form]
    save_backbone(tmp_path / "backbone", prompt == "t5", bos)
    loaded = build(trained, tmp_path / "backbone", prompt, texts, reads)
    generation = GenerationConfig(max_new_tokens=6, stop_at_newline=one_line)
    adapter = loaded.adapt(INSTRUCTION)
    exporter = Exporter(loaded)
    monkeypatch.setattr(exporter, "generation", generation)
    exporter.write(adapter, tmp_path / "adapter")
    found = run_card(tmp_path / "adapter", monkeypatch)
    first = [] if prompt == "t5" or not bos else [1]
    for text, row in zip(INPUTS, loaded.input_rows([adapter.instruction] * len(INPUTS), INPUTS), strict=True):
        assert found["prompt"](text) == [*first, *row]
    answers = [found["answer"](text) for text in INPUTS]
    assert answers == [loaded.generate(adapter, [text], generation)[0] for text in INPUTS]
    assert len(set(answers)) > 1
    assert one_line <= all(prompt == "t5" or answer for answer in answers)


def test_a_merged_model_says_the_same_by_its_card(trained, tmp_path, monkeypatch):
    save_backbone(tmp_path / "backbone", False, False)
    loaded = build(trained, tmp_path / "backbone")
    adapter = loaded.adapt(INSTRUCTION)
    Exporter(loaded).write_merged(adapter, tmp_path / "merged", torch.float32)
    shutil.move(tmp_path / "merged", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "backbone")
    found = run_card(tmp_path / "elsewhere", monkeypatch)
    assert [found["answer"](text) for text in INPUTS[:3]] == loaded.generate(adapter, INPUTS[:3])


def test_an_adapter_of_a_backbone_named_from_here_loads_from_anywhere(trained, tmp_path, monkeypatch):
    save_backbone(tmp_path / "backbone", False, False)
    monkeypatch.chdir(tmp_path)
    loaded = build(trained, "backbone")
    adapter = loaded.adapt(INSTRUCTION)
    Exporter(loaded).write(adapter, tmp_path / "made" / "adapter")
    monkeypatch.chdir(tmp_path / "made")
    model = AutoPeftModelForCausalLM.from_pretrained("adapter").eval()
    assert difference(model, loaded.model.backbone, adapter.lora) < 1e-5
    told = json.loads((tmp_path / "made" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert told == str(tmp_path / "backbone")
    card = (tmp_path / "made" / "adapter" / "README.md").read_text()
    assert f'BACKBONE = "{told}"\n' in card
    assert "base_model:" not in card
    backbone = load_backbone(BackboneConfig("../backbone"))
    found = read_lora(tmp_path / "made" / "adapter", backbone)
    assert all(torch.equal(found.b[site], factor) for site, factor in adapter.lora.b.items())


def test_the_card_of_a_stack_names_what_the_package_exports():
    [path] = re.findall(r"tagi_lightning\.peft_io\.(\w+)", CARD_TEXT)
    assert hasattr(peft_io, path)

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, Qwen3Config

from tagi_lightning.backbones import BackboneConfig, GenerationConfig, load_backbone
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.prompts import PromptAssembler
from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.tokenizer import load_tokenizer
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig
from tagi_lightning.peft_io import AdapterFolderError, PeftWriter, load_adapter, merge_to_folder, read_lora, writing
from tagi_lightning.peft_io.folders import PREFIX, REST, WEIGHTS, difference, plain_model

T5_SITES = [
    {"targets": ("q", "v")},
    {"targets": ("q", "k", "v", "o"), "alpha": 3},
    {"targets": ("o",), "stacks": ("encoder_self",)},
    {"targets": ("q", "v"), "stacks": ("decoder_self", "decoder_cross"), "rank": 3},
]
CAUSAL_SITES = [{"targets": ("q", "v")}, {"targets": ("q", "k", "v", "o"), "alpha": 3, "rank": 3}, {"targets": ("o",)}]


def build_causal(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = CausalBackbone(FAMILIES[config.model_type](config), config.model_type)
    backbone.freeze()
    return backbone.eval()


SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": None}


@pytest.fixture(scope="module", params=["llama-tied", "qwen3"])
def causal(request):
    tied = LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_theta=1000.0)
    return build_causal(tied if request.param == "llama-tied" else Qwen3Config(**SHAPE, head_dim=16))


def sites(options):
    return LoraConfig(**{"rank": 4, **options})


def export(backbone, weights, folder, **options):
    PeftWriter(backbone).write(weights, folder, **options)
    return folder


def logits_of_peft(backbone, folder):
    """Returns how far PEFT on a saved copy of the plain model is from the backbone under `read_lora`."""
    model = plain_model(backbone)
    return PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize("options", T5_SITES)
def test_every_site_configuration_of_every_t5_gives_the_same_logits_in_peft(any_backbone, lora, tmp_path, options):
    weights = lora(any_backbone, 1, sites(options))
    folder = export(any_backbone, weights, tmp_path / "adapter")
    assert difference(logits_of_peft(any_backbone, folder), any_backbone, weights) < 1e-5
    back = read_lora(folder, any_backbone)
    assert back.a.keys() == weights.a.keys()
    assert all(torch.equal(back.a[site], weights.a[site]) for site in weights.a)
    assert all(torch.equal(back.b[site], weights.b[site]) for site in weights.b)
    assert back.scale == pytest.approx(weights.scale)


@pytest.mark.parametrize("options", CAUSAL_SITES)
def test_every_site_configuration_of_decoder_only_models_gives_the_same_logits_in_peft(causal, lora, tmp_path, options):
    weights = lora(causal, 1, sites(options))
    folder = export(causal, weights, tmp_path / "adapter")
    assert difference(logits_of_peft(causal, folder), causal, weights) < 1e-5
    assert difference(plain_model(causal), causal, weights) > 1e-2
    assert difference(plain_model(causal), causal, read_lora(folder, causal)) > 1e-2
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert sorted(names) == sorted(f"{target}_proj" for target in options["targets"])


def test_nothing_but_the_folder_is_left_and_nothing_of_it_is_pickled(backbone, lora, tmp_path):
    export(backbone, lora(backbone, 1), tmp_path / "adapter", card="the card\n")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8") == "the card\n"


def test_writing_leaves_the_backbone_as_it_was(causal, lora, tmp_path):
    modules = {name: type(module) for name, module in causal.model.named_modules()}
    digest = causal.digest()
    export(causal, lora(causal, 1), tmp_path / "adapter")
    merge_to_folder(causal, lora(causal, 1), tmp_path / "merged", torch.bfloat16)
    assert causal.digest() == digest
    assert {name: type(module) for name, module in causal.model.named_modules()} == modules
    assert {parameter.dtype for parameter in causal.parameters()} == {torch.float32}


WRONG = {
    "prefix": lambda tensors: {name.replace(PREFIX, "model."): tensor for name, tensor in tensors.items()},
    "site": lambda tensors: {name.replace("block.0", "block.9"): tensor for name, tensor in tensors.items()},
    "value": lambda tensors: {name: tensor + 1e-3 * (name == max(tensors)) for name, tensor in tensors.items()},
    "missing": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != max(tensors)},
    "shape": lambda tensors: {name: tensor[:, 1:].contiguous() for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("size", [0.3, 0.0], ids=["trained", "zero"])
def test_a_folder_that_peft_reads_otherwise_is_refused_and_not_left(backbone, lora, tmp_path, monkeypatch, wrong, size):
    """Also where the update is zero, so that the plain model's logits would pass."""
    monkeypatch.setattr(
        writing, "save_file", lambda tensors, path, metadata: save_file(WRONG[wrong](tensors), path, metadata)
    )
    with pytest.raises(AdapterFolderError, match=r"adapter was not written: PEFT"):
        export(backbone, lora(backbone, 1, size=size), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_another_scale_is_caught_by_the_logits(backbone, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PeftLoraConfig", lambda **kw: PeftLoraConfig(**(kw | {"lora_alpha": 1})))
    with pytest.raises(AdapterFolderError, match="PEFT's logits differ from ours by"):
        export(backbone, lora(backbone, 1), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_when_asked(backbone, lora, tmp_path):
    first, second = lora(backbone, 1), lora(backbone, 1, seed=1)
    folder = export(backbone, first, tmp_path / "adapter")
    with pytest.raises(AdapterFolderError, match=r"adapter is already there.*--overwrite true"):
        export(backbone, second, folder)
    site = next(iter(first.a))
    assert torch.equal(read_lora(folder, backbone).a[site], first.a[site])
    export(backbone, second, folder, overwrite=True)
    assert torch.equal(read_lora(folder, backbone).a[site], second.a[site])
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_several_tasks_and_rounded_weights_are_refused(build, lora, tmp_path):
    backbone = build("narrow")
    with pytest.raises(ValueError, match="adapter of one task, got 2"):
        export(backbone, lora(backbone, 2), tmp_path / "adapter")
    with pytest.raises(AdapterFolderError, match=r"loaded in bfloat16.*dtype=float32"):
        PeftWriter(backbone.to(torch.bfloat16))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_teacher_that_peft_made_loads_and_gives_the_same_logits(causal, tmp_path, rslora):
    modules = ["q_proj", "v_proj", "o_proj"]
    theirs = get_peft_model(
        plain_model(causal), PeftLoraConfig(r=3, lora_alpha=5, target_modules=modules, use_rslora=rslora)
    ).eval()
    for number, parameter in enumerate(p for p in theirs.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    theirs.save_pretrained(tmp_path / "theirs")
    assert difference(theirs, causal, read_lora(tmp_path / "theirs", causal)) < 1e-5


def test_a_teacher_that_peft_made_on_a_t5_loads_and_gives_the_same_logits(backbone, tmp_path):
    theirs = get_peft_model(plain_model(backbone), PeftLoraConfig(r=2, target_modules=["q", "v"])).eval()
    for number, parameter in enumerate(p for p in theirs.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    theirs.save_pretrained(tmp_path / "theirs")
    assert difference(theirs, backbone, read_lora(tmp_path / "theirs", backbone)) < 1e-5


def change_tensors(change):
    def apply(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return apply


def change_config(**values):
    def apply(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


REFUSED = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"no PEFT adapter in .*/adapter"),
    "pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        r"/adapter.*pickled adapter_model\.bin",
    ),
    "damaged": (lambda folder: (folder / WEIGHTS).write_bytes(b"damaged"), "is damaged"),
    "truncated": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]), "is damaged"),
    "no json": (lambda folder: (folder / "adapter_config.json").write_text("{"), "is no configuration of PEFT"),
    "no rank": (change_config(r=None), "is no configuration of PEFT"),
    "another method": (change_config(peft_type="IA3"), "is a IA3 adapter; supported: LORA"),
    "several alphas": (change_config(alpha_pattern={"q": 3}), "uses alpha_pattern"),
    "wrong prefix": (change_tensors(WRONG["prefix"]), "is no LoRA factor of the backbone's attention"),
    "missing tensor": (change_tensors(WRONG["missing"]), "is missing"),
    "wrong rank": (change_config(r=7), r"has shape \(4, 32\), expected \(7, 32\)"),
    "nothing": (change_tensors(lambda tensors: {}), "holds no LoRA factor"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_folder_that_cannot_be_read_is_refused_by_name(backbone, lora, tmp_path, reason):
    folder = export(backbone, lora(backbone, 1), tmp_path / "adapter")
    damage, message = REFUSED[reason]
    damage(folder)
    with pytest.raises(AdapterFolderError, match=message):
        read_lora(folder, backbone)


def test_an_adapter_of_another_backbone_is_refused(backbone, build, lora, tmp_path):
    folder = export(backbone, lora(backbone, 1), tmp_path / "adapter")
    with pytest.raises(AdapterFolderError, match=r"made for backbone 'narrow-0', and 'narrow-1' has other weights"):
        read_lora(folder, build("narrow", 1))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_adapter_with_fusion_and_memory_comes_back_whole(any_backbone, trained, tokens, tmp_path, norm):
    model = trained(any_backbone, TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(norm=norm)))
    adapter = model.prepare(tokens([6]))
    folder = export(any_backbone, adapter.lora, tmp_path / "adapter", rest=adapter)
    back = load_adapter(folder, model)
    targets = tokens([3, 2], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    with torch.no_grad():
        expected, found = (
            model(tokens([4, 6]), labels, each, torch.zeros(2, dtype=torch.long)) for each in (adapter, back)
        )
    assert torch.equal(found, expected)
    other = trained(any_backbone, TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(norm=norm)), seed=1)
    with pytest.raises(AdapterFolderError, match="made by other weights"):
        load_adapter(folder, other)
    (folder / REST).unlink()
    with pytest.raises(AdapterFolderError, match=f"holds no {REST}"):
        load_adapter(folder, model)


def test_a_prefix_comes_back_whole_and_an_adapter_of_lora_alone_too(causal, trained, tokens, tmp_path):
    for memory in (True, False):
        config = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False), decoder_memory=memory)
        model = trained(causal, config)
        adapter = model.prepare(tokens([6]))
        folder = export(causal, adapter.lora, tmp_path / str(memory), rest=adapter if memory else None)
        back = load_adapter(folder, model)
        labels = tokens([3, 3], seed=1).ids
        with torch.no_grad():
            both = [model(tokens([4, 6]), labels, each, torch.zeros(2, dtype=torch.long)) for each in (adapter, back)]
        assert torch.equal(*both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_t5_is_a_whole_model(any_backbone, lora, tmp_path, dtype):
    weights = lora(any_backbone, 1, LoraConfig(rank=4, targets=("q", "k", "v", "o")), size=0.1)
    merge_to_folder(any_backbone, weights, tmp_path / "merged", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    assert loaded.dtype == dtype
    assert difference(loaded.float(), any_backbone, weights) < (1e-4 if dtype == torch.float32 else 0.1)
    assert difference(plain_model(any_backbone), any_backbone, weights) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_decoder_only_model_is_a_whole_model(causal, lora, tmp_path, dtype):
    weights = lora(causal, 1, size=0.1)
    merge_to_folder(causal, weights, tmp_path / "merged", dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert loaded.dtype == dtype
    assert difference(loaded.float(), causal, weights) < (1e-4 if dtype == torch.float32 else 0.1)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in written) is not config["tie_word_embeddings"]
    assert config["architectures"] == [type(loaded).__name__]


def test_a_t5_is_not_merged_into_float16(backbone, lora, tmp_path):
    with pytest.raises(ValueError, match="overflow in float16"):
        merge_to_folder(backbone, lora(backbone, 1), tmp_path / "merged", torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.realdata
@torch.no_grad()
def test_a_pretrained_model_answers_alike_in_peft_on_real_inputs(trained, tmp_path):
    if not (os.environ.get("TAGI_DATA") and os.environ.get("TAGI_CAUSAL")):
        pytest.skip("set TAGI_DATA to a folder holding sni/ and TAGI_CAUSAL to one of a decoder-only model")
    source = os.environ["TAGI_CAUSAL"]
    tokenizer, prompts = load_tokenizer(source), InstructionPrompts("causal", demonstrations=2)
    backbone = load_backbone(BackboneConfig(source))
    model = trained(backbone, TagiConfig(LoraConfig(rank=8), fusion=FusionConfig(enabled=False), decoder_memory=False))
    folder = Path(os.environ["TAGI_DATA"], "sni")
    tasks = read_sni(folder, allow_missing=True, max_train_instances=1, max_test_instances=4).test[:5]
    config = GenerationConfig(max_new_tokens=8)
    assembler = PromptAssembler.from_tokenizer(tokenizer, 2, 200, form=prompts.form)
    answers = 0
    for task in tasks:
        instruction = Instruction(task.definitions[0], task.demonstrations, task.name)
        adapter = model.prepare(Tokens.pad([prompts.tokenize(tokenizer, instruction).ids], 0))
        export(backbone, adapter.lora, tmp_path / task.name)
        plain = AutoModelForCausalLM.from_pretrained(source).eval()
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / task.name)).eval()
        for text in prompts.form.tokenize(tokenizer, [prompts.form.input(each.input) for each in task.instances]):
            row = assembler.input(text)
            ours = model.generate(Tokens.pad([row], 0), adapter, torch.zeros(1, dtype=torch.long), config)[0]
            ids = torch.tensor([row])
            said = theirs.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
            )
            assert torch.equal(ours, said[0, len(row) :])
            answers += 1
    assert answers == 20

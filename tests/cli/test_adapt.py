import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from byte_tokenizer import build_byte_tokenizer
from commands import copy_stages, tagi
from peft import PeftModel
from table_cells import table_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tagi_lightning.backbones import BackboneConfig, load_backbone
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.task import Demonstration
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig
from tagi_lightning.peft_io import load_adapter, read_lora
from tagi_lightning.peft_io.folders import difference
from tagi_lightning.peft_io.stacked import StackedAdapters
from tagi_lightning.storage.serialization import ModelFolderError, read_folder, recorded_prompts, save_tagi

ALONE = {"fusion": FusionConfig(enabled=False), "decoder_memory": False}
PROMPTS = InstructionPrompts("causal", demonstrations=2, max_input_length=400)
TEXT = "Say the first word.\n# not a heading ``` nor a fence"
SHOWN = [{"input": "1 2", "output": "1"}, {"input": "b a", "output": "b"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny decoder-only backbone in it."""
    folder = tmp_path_factory.mktemp("adapt")
    tokenizer = build_byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **shape)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def save(place, trained):
    """Saves a model of a configuration under a name; returns its folder."""

    def save_model(name, config, prompts=PROMPTS):
        save_tagi(
            trained(load_backbone(BackboneConfig(str(place / "backbone"))), config), place / name, prompts=prompts
        )
        return place / name

    return save_model


@pytest.fixture(scope="module")
def model(save):
    """A TAGI-LoRA model; not to be changed."""
    return save("model", TagiConfig(LoraConfig(rank=4), **ALONE))


def adapt(capsys, *options):
    """Runs the verb; returns the exit code, the folders it lists and what it says."""
    code = tagi(["adapt", *options])
    told = capsys.readouterr()
    return code, told.out.split(), told.err


def test_an_instruction_becomes_a_folder_that_gives_its_logits_in_peft(place, model, tmp_path, capsys):
    arguments = ["--model", model, "--instruction", TEXT, "--positive", json.dumps(SHOWN), "--output", tmp_path / "o"]
    code, [folder], said = adapt(capsys, *arguments)
    assert (code, said) == (0, "")
    loaded = InstructedModel.load(model)
    given = Instruction(TEXT, tuple(Demonstration(**each) for each in SHOWN))
    assert folder == str(tmp_path / "o" / given.folder_name)
    expected = loaded.adapt(given)
    plain = AutoModelForCausalLM.from_pretrained(place / "backbone")
    assert difference(plain, loaded.model.backbone, expected.lora) > 1e-2
    theirs = PeftModel.from_pretrained(plain, folder).eval()
    assert difference(theirs, loaded.model.backbone, expected.lora) < 1e-5
    card = (tmp_path / "o" / given.folder_name / "README.md").read_text(encoding="utf-8")
    assert "    Say the first word.\n    # not a heading ``` nor a fence\n    \n    Input: 1 2\n    Output: 1\n" in card
    for told in (str(place / "backbone"), loaded.model.backbone.digest()[:12], "def prompt(text):"):
        assert told in card
    assert dict(table_rows(card)[2:])["rank"].startswith("4,")
    code, folders, said = adapt(capsys, *arguments)
    assert (code, folders) == (1, [])
    assert "is already there" in said
    assert adapt(capsys, *arguments, "--overwrite", "true")[0] == 0


def test_a_file_gives_a_folder_a_line_as_each_alone(model, tmp_path, capsys):
    rows = [{"instruction": TEXT, "demonstrations": SHOWN}, {"instruction": "Say it " * 20, "task": "t"}]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])), encoding="utf-8")
    code, folders, said = adapt(capsys, "--model", model, "--file", tmp_path / "many.jsonl", "--output", tmp_path / "o")
    assert code == 0
    assert [path.rpartition("/")[2].rpartition("-")[0] for path in folders] == [
        "say-the-first-word-not-a-heading-nor-a-f",
        "t",
    ]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(
        folder.rpartition("/")[2] for folder in folders
    )
    assert "trained on instructions with 2 examples and this one has 0" in said
    loaded = InstructedModel.load(model)
    alone = loaded.adapt(Instruction("Say it " * 20, name="t"))
    together = read_lora(tmp_path / "o" / folders[1], loaded.model.backbone)
    for site, factor in alone.lora.b.items():
        assert torch.allclose(together.b[site], factor, atol=1e-6)


def test_a_task_file_gives_a_folder_of_its_name(model, tmp_path, capsys):
    document = {"Definition": [TEXT], "Positive Examples": SHOWN}
    (tmp_path / "task1_first.json").write_text(json.dumps(document), encoding="utf-8")
    code, [folder], said = adapt(
        capsys, "--model", model, "--task", tmp_path / "task1_first.json", "--output", tmp_path
    )
    assert (code, said) == (0, "")
    assert folder.startswith(str(tmp_path / "task1-first-"))


def test_merging_writes_whole_models_beside(model, tmp_path, capsys):
    options = ["--model", model, "--definition", TEXT, "--output", tmp_path, "--merge", "true"]
    code, [folder, merged], _ = adapt(capsys, *options)
    assert code == 0
    assert merged == f"{folder}-merged"
    loaded = InstructedModel.load(model)
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert difference(whole, loaded.model.backbone, read_lora(tmp_path / folder, loaded.model.backbone)) < 1e-4
    assert AutoTokenizer.from_pretrained(merged)("first").input_ids == loaded.tokenizer("first").input_ids


def test_what_peft_cannot_hold_is_told_kept_and_loaded(save, tmp_path, capsys):
    config = TagiConfig(
        LoraConfig(rank=4), HypernetworkConfig(writes="both", prefix_length=3), fusion=FusionConfig(enabled=False)
    )
    model = save("whole", config)
    code, [folder], said = adapt(capsys, "--model", model, "--instruction", TEXT, "--output", tmp_path)
    assert code == 0
    for told in ("the instruction as memory of the decoder, a generated prefix", "train a TAGI-LoRA model"):
        assert told in said
        assert told in (tmp_path / folder / "README.md").read_text(encoding="utf-8")
    loaded = InstructedModel.load(model)
    expected = loaded.adapt(TEXT)
    back = load_adapter(tmp_path / folder, loaded.model)
    for left, right in zip(back.tensors(), expected.prepared.tensors(), strict=True):
        assert torch.equal(left, right)


def test_the_model_of_a_whole_run_is_adapted_with_its_fusion_and_memory(chain, tmp_path, capsys):
    model = chain / "distill" / "model"
    code, [folder], said = adapt(capsys, "--model", model, "--instruction", "Reverse.", "--output", tmp_path)
    assert code == 0
    assert "fusion of the encoder with the instruction, the instruction as memory of the decoder" in said
    loaded = InstructedModel.load(model)
    assert load_adapter(tmp_path / folder, loaded.model).fusion is not None


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_the_command_that_measures_what_peft_loses_runs_as_it_is_told(chain, task_set, tmp_path, capsys, is_evaluated):
    """By the record of training, and where there is one by that of the evaluation, whose results it adds to."""
    run = tmp_path / "a run"
    copy_stages(chain, run, "pretrain-backbone", "distill")
    options = ["--model", run / "distill" / "model", "--backbone", run / "pretrain-backbone" / "model"]
    options += ["--instruction", "Reverse.", "--output", tmp_path / "o", "--overwrite", "true"]
    if is_evaluated:
        own = [f"--config={run / 'distill' / 'config.yaml'}", "--model=Evaluation", f"--run={run}"]
        own += ["--model.init_args.systems=[tagi]", "--model.init_args.flops=false", "--trainer.logger=false"]
        own += ["--trainer.enable_checkpointing=false", "--model.init_args.generation.max_new_tokens=3"]
        assert tagi(["evaluate", *own]) == 0
    said = adapt(capsys, *options)[2]
    program, *arguments = shlex.split(said.partition("measure it where it was trained: ")[2])
    assert program == "tagi"
    assert f"{'evaluate/tagi' if is_evaluated else 'distill'}/config.yaml" in arguments[1]
    assert tagi(arguments) == 0
    assert (" is already in " in capsys.readouterr().out) is is_evaluated
    _, [folder], said = adapt(capsys, *options)
    assert " by its LoRA alone" in said
    card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
    assert "The model was evaluated with the backbone in float32" in card
    assert f"max_new_tokens={3 if is_evaluated else 8}," in card


def test_a_model_folder_tells_how_instructions_were_written(chain):
    folder = chain / "distill" / "model"
    _, config = read_folder(folder, "tagi", "")
    assert recorded_prompts(folder, config) == (InstructionPrompts("t5", "definition", 0, 128), None)
    with pytest.raises(ModelFolderError, match="does not tell how instructions were written"):
        recorded_prompts(folder, config | {"prompts": {"form": "t5"}})
    with pytest.raises(ModelFolderError, match=r"pretrain/model does not tell how its instructions were written.*make"):
        InstructedModel.load(chain / "pretrain" / "model")


def test_many_adapters_go_into_one_folder_and_one_of_them_into_a_peft_folder(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tagi_lightning.peft_io.stacked.SHARD_BYTES", 1)
    rows = [{"instruction": f"Say \u2028 {number}.", "demonstrations": SHOWN[:1]} for number in range(3)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--model", model, "--output", tmp_path / "o"]
    code, told, said = adapt(capsys, *options, "--file", tmp_path / "many.jsonl", "--stacked", "true")
    assert (code, told) == (0, [str(tmp_path / "o")])
    assert "3 of 3 adapters" in said
    loaded = InstructedModel.load(model)
    names = StackedAdapters(tmp_path / "o", loaded).names
    options = ["--model", model, "--stack", tmp_path / "o", "--output", tmp_path / "one"]
    code, [folder], _ = adapt(capsys, *options, "--name", names[1])
    assert (code, folder) == (0, str(tmp_path / "one" / names[1]))
    back, expected = read_lora(tmp_path / folder, loaded.model.backbone), loaded.adapt("Say \u2028 1.", [("1 2", "1")])
    for site, factor in expected.lora.b.items():
        assert torch.allclose(back.b[site], factor, atol=1e-6)
    code, _, said = adapt(capsys, *options, "--name", "say")
    assert code == 1
    assert "has no adapter say; there is say-0" in said


def test_examples_that_a_model_does_not_read_are_told_of_folders_and_stacks_alike(save, tmp_path, capsys):
    model = save("definitions", TagiConfig(LoraConfig(rank=4), **ALONE), replace(PROMPTS, demonstrations=0))
    capsys.readouterr()  # a bar of the loading
    told = "the model was trained on definitions alone; it reads no examples\n"
    options = ["--model", model, "--instruction", TEXT, "--positive", json.dumps(SHOWN)]
    code, _, said = adapt(capsys, *options, "--output", tmp_path / "one")
    assert code == 0
    assert said.endswith(f": {told}")
    code, _, of_stack = adapt(capsys, *options, "--output", tmp_path / "stack", "--stacked", "true")
    assert code == 0
    assert of_stack.startswith(said)
    rows = [{"instruction": f"Say {number}.", "demonstrations": SHOWN[:number]} for number in range(3)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--model", model, "--file", tmp_path / "many.jsonl", "--output", tmp_path / "many", "--stacked", "true"]
    _, [folder], said = adapt(capsys, *options)
    assert said.count(told) == 1
    assert f" and 1 more: {told}" in said
    made = [json.loads(line) for line in (Path(folder) / "instructions.jsonl").read_text("utf-8").splitlines()]
    assert [row["demonstrations"] for row in made] == [[], [], []]
    alone = adapt(capsys, "--model", model, "--instruction", "Say 2.", "--output", tmp_path / "alone")[1]
    assert made[2]["name"] == Path(alone[0]).name


def test_an_adapter_is_trained_further_and_reported_beside_scratch(model, tmp_path, capsys):
    rows = [{"input": f"{letter} b", "output": [letter, "-"]} for letter in "abcdefgh"]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = [
        "--model",
        model,
        "--instruction",
        TEXT,
        "--output",
        tmp_path / "o",
        "--finetune",
        tmp_path / "few.jsonl",
    ]
    code, [folder], said = adapt(capsys, *options, "--steps", "4", "--lr", "0.01")
    assert code == 0
    assert folder.endswith("-finetuned")
    report = json.loads((tmp_path / folder / "finetuning.json").read_text())
    assert (report["trained_on"], report["held_out"]) == (6, 2)
    assert list(report["rows"]) == [
        "backbone, no adapter",
        "generated LoRA",
        "generated LoRA, 4 steps",
        "from scratch, 4 steps",
    ]
    told = {name: loss for name, loss, *_ in table_rows(said)}
    for name, row in report["rows"].items():
        assert told[name] == f"{row['loss']:.3f}"
        assert name in (tmp_path / folder / "README.md").read_text()
    loaded = InstructedModel.load(model)
    trained, start = read_lora(tmp_path / folder, loaded.model.backbone), loaded.adapt(TEXT).lora
    assert not any(torch.equal(trained.b[site], start.b[site]) for site in start.b)


def test_what_peft_loses_is_told_in_the_figures_of_the_run(save, tmp_path, capsys):
    model = save("run/model", TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False)))
    loaded = InstructedModel.load(model)
    digests = {"weights_digest": loaded.model.digest(), "backbone_digest": loaded.model.backbone.digest()}

    def measure(system, figure, **changes):
        folder = model.parent / "evaluate" / system
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"overall": {"n": 50, "exact_match": figure}, "by_task": {}, "system": system, "seed": 0}
        metrics |= {**digests, **changes}
        (folder / "metrics.json").write_text(json.dumps(metrics))

    options = ["--model", model, "--instruction", TEXT, "--output", tmp_path, "--overwrite", "true"]
    measure("tagi", 61.5)
    measure("lora_only", 20.25, weights_digest="other")
    said = adapt(capsys, *options)[2]
    assert "How much that costs was not measured of these weights." in said
    measure("lora_only", 20.25)
    _, [folder], said = adapt(capsys, *options)
    told = "50 instances of its run's test tasks, exact match: 61.5 whole, 20.2 by its LoRA alone."
    assert told in said
    assert told in (tmp_path / folder / "README.md").read_text()


OPTIONS = [
    ([], "give one of --instruction, --definition, --task, --file, --stack.*got none"),
    (["--instruction", "a", "--task", "b"], "got --instruction and --task"),
    (["--instruction", " "], "--instruction is empty"),
    (["--task", "a", "--positive", "[]"], "a cannot be used"),
    (["--instruction", "a", "--stack", "b"], "--stack FOLDER and --name NAME go together"),
    (["--instruction", "a", "--merge", "true", "--stacked", "true"], "give one of --merge, --stacked and --finetune"),
    (["--file", "a", "--finetune", "b"], "a cannot be used"),
    (["--instruction", "a", "--finetune", "b"], "b cannot be used"),
    (["--instruction", "a", "--finetune", "b", "--steps", "0"], "--steps must be at least 1, got 0"),
    (["--instruction", "a", "--finetune", "b", "--lr", "-1"], "--lr must be above 0, got -1"),
    (["--instruction", "a", "--steps", "5"], "--steps goes with --finetune FILE"),
    (["--instruction", "a", "--seed", "0"], "--seed goes with --finetune FILE"),
    (["--file", "a", "--positive", '[{"input": "", "output": ""}]'], "tasks and files bring their own examples"),
    (["--instruction", "a", "--positive", '[{"input": "b"}]'], "--positive takes examples such as"),
    (["--instruction", "word " * 500], "leaves no room for an input in the 400 tokens"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_wrong_options_are_told_and_nothing_is_written(model, tmp_path, capsys, options, message):
    code, folders, said = adapt(capsys, "--model", model, "--output", tmp_path / "o", *options)
    assert (code, folders) == (1, [])
    assert said.startswith("tagi adapt: ")
    assert "Traceback" not in said
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert not (tmp_path / "o").exists()


def test_models_that_generate_no_lora_or_trained_their_backbone_are_refused(save, tmp_path, capsys):
    cases = {
        "generates no LoRA": TagiConfig(LoraConfig(rank=4), HypernetworkConfig(writes="prefix"), **ALONE),
        "trained weights of the backbone itself": TagiConfig(
            LoraConfig(rank=4), trained_backbone="norms_embeddings", **ALONE
        ),
    }
    for message, config in cases.items():
        folder = save("other", config)
        code, _, said = adapt(capsys, "--model", folder, "--instruction", TEXT, "--output", tmp_path / "o")
        assert code == 1
        assert message in said
        assert "supported: " in said


def test_a_backbone_is_found_where_it_lies_now_and_another_is_refused(place, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((place / "backbone" / "config.json").read_text())
    shutil.copytree(place / "backbone", tmp_path / "other")
    other = AutoModelForCausalLM.from_config(LlamaConfig(**config))
    other.save_pretrained(tmp_path / "other")
    options = ["--model", tmp_path / "model", "--instruction", TEXT, "--output", tmp_path / "o", "--backbone"]
    code, _, said = adapt(capsys, *options, tmp_path / "other")
    assert code == 1
    assert "was trained on backbone" in said
    code, _, said = adapt(capsys, *options, tmp_path / "absent")
    assert code == 1
    assert "where it lies now: --backbone DIR" in said
    shutil.move(tmp_path / "other", tmp_path / "gone")
    shutil.copytree(place / "backbone", tmp_path / "moved")
    assert adapt(capsys, *options, tmp_path / "moved")[0] == 0


def test_whose_backbone_comes_out_of_the_package_index_is_told_how(place, trained, tmp_path, capsys):
    shutil.copytree(place / "backbone", tmp_path / "smollm2-135m")
    backbone = load_backbone(BackboneConfig(str(tmp_path / "smollm2-135m")))
    save_tagi(trained(backbone, TagiConfig(LoraConfig(rank=4), **ALONE)), tmp_path / "model", prompts=PROMPTS)
    options = ["--model", tmp_path / "model", "--instruction", TEXT, "--output", tmp_path / "o"]
    _, [folder], _ = adapt(capsys, *options)
    told = "make backbone BACKBONE=smollm2-135m"
    assert f"`{told}` gets it" in (tmp_path / folder / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "smollm2-135m")
    code, _, said = adapt(capsys, *options)
    assert code == 1
    assert f"where it lies now: --backbone DIR, in Python backbone=DIR; {told} gets it" in said

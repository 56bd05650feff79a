"""A user's own decoder-only model: what does not fit is one message that says what to do."""

import pytest
import torch
from byte_tokenizer import build_byte_tokenizer
from commands import command, tagi
from test_check import check
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = ["--trainer.max_steps=1", "--trainer.logger=false", "--trainer.accumulate_grad_batches=1"]


@pytest.fixture
def build(tmp_path):
    """Writes a Llama of so many positions, its vocabulary larger than its tokenizer by some; returns its folder."""

    def build(positions=512, tokenizer=True, extra=0):
        folder, own = tmp_path / "llama", build_byte_tokenizer()
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        sizes = {"vocab_size": len(own) + extra, "num_hidden_layers": 1, "max_position_embeddings": positions}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape, **sizes)).save_pretrained(folder)
        if tokenizer:
            own.save_pretrained(folder)
        return folder

    return build


@pytest.fixture
def fit(task_set, tmp_path, capsys):
    """Runs distill on a backbone; returns the exit code and what was said."""

    def fit(backbone, *options, size="smollm2-135m", **variables):
        words = command("distill", tmp_path / "run", task_set, SIZE=size, BACKBONE=backbone, **variables)
        code = tagi([*words, *STEPS, *options])
        return code, capsys.readouterr().err

    return fit


def test_a_model_of_ones_own_trains_and_is_well(fit, build, task_set, tmp_path, capsys):
    backbone = build()
    code, out, err = check(capsys, "distill", tmp_path / "run", task_set, SIZE="smollm2-135m", BACKBONE=backbone)
    assert (code, err) == (0, "")
    assert out.endswith("nothing is wrong\n")
    assert fit(backbone)[0] == 0


@pytest.mark.parametrize(
    ("name", "why"), [("/nowhere/at/all", "there is no folder"), ("nobody/absent-model", "nobody/absent-model is no")]
)
def test_a_model_that_is_not_there_is_told_with_what_is_supported(fit, monkeypatch, name, why):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for variables in ({}, {"TOKENIZER": "some/tokenizer"}):
        code, said = fit(name, **variables)
        assert code == 1
        assert said.startswith(f"tagi fit: cannot load backbone '{name}': {why}")
    assert "Supported: t5, and the decoder-only families llama" in said
    assert "usage:" not in said


def test_check_tells_a_model_that_is_not_there(task_set, tmp_path, capsys):
    variables = {"SIZE": "smollm2-135m", "BACKBONE": tmp_path / "absent"}
    code, _, err = check(capsys, "distill", tmp_path / "run", task_set, **variables)
    assert code == 1
    assert f"cannot load backbone '{tmp_path / 'absent'}': there is no folder" in err


def test_a_model_without_tokenizer_is_told_alike_with_and_without_another_one(fit, build, tmp_path):
    bare = build(tokenizer=False)
    build_byte_tokenizer().save_pretrained(tmp_path / "other")
    for variables in ({}, {"TOKENIZER": tmp_path / "other"}):
        code, said = fit(bare, **variables)
        assert code == 1
        assert f"no tokenizer: {bare} holds none of tokenizer.json" in said
        assert "copy the model's own tokenizer.json and tokenizer_config.json" in said
        assert "compute_fn" not in said
        assert "usage:" not in said
    build_byte_tokenizer().save_pretrained(bare)
    assert fit(bare)[0] == 0


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_settings_of_a_t5_are_told_to_be_of_another_kind(fit, build, size):
    backbone = build()
    fresh = ["--model.init_args.teachers=none", "--model.init_args.init_from=none"]
    code, said = fit(backbone, *fresh, size=size)
    assert code == 1
    assert f"{backbone} is decoder-only" in said
    assert f"SIZE=smollm2-135m BACKBONE={backbone} with make, or --config experiments/sizes/smollm2-135m.yaml" in said


def test_a_context_that_is_too_short_is_told_by_check_and_by_training_alike(fit, build, task_set, tmp_path, capsys):
    backbone = build(positions=16)
    told = f"the context of {backbone} is too short for these data: it has 16 positions, and an example needs"
    code, _, err = check(capsys, "distill", tmp_path / "run", task_set, SIZE="smollm2-135m", BACKBONE=backbone)
    assert code == 1
    assert told in err
    code, said = fit(backbone)
    assert code == 1
    assert told in said
    assert "Take a backbone with more positions, or shorter data" in said


@pytest.mark.parametrize("memory", [False, True])
def test_check_counts_the_tokens_that_training_reads(build, task_set, tmp_path, capsys, memory):
    """One position less than the greatest need of the sample is too few, and this many are enough."""
    options = [f"--model.init_args.tagi.decoder_memory={str(memory).lower()}"]

    def problems(positions):
        run = tmp_path / f"run{positions}"
        backbone = build(positions)
        return check(capsys, "distill", run, task_set, *options, SIZE="smollm2-135m", BACKBONE=backbone)[2]

    needed = int(problems(8).partition("an example needs ")[2].split()[0])
    assert needed > 20
    assert "too short" in problems(needed - 1)
    assert problems(needed) == ""


def test_a_tokenizer_that_is_larger_than_its_model_is_not_advised_again(fit, build):
    backbone = build(extra=-40)
    code, said = fit(backbone)
    assert code == 1
    own = len(build_byte_tokenizer())
    assert f"has {own} tokens and backbone {backbone} {own - 40}" in said
    assert "get the tokenizer files of the model that the weights are of" in said
    assert "TOKENIZER=" not in said

"""A data module whose tokens or prompts are another model's is refused before a step is taken."""

import pytest
from byte_tokenizer import build_byte_tokenizer
from commands import command, tagi, write_task_set

FRESH = ["--model.init_args.teachers=none", "--model.init_args.init_from=none", "--trainer.max_steps=1"]


@pytest.fixture
def refusal(chain, tmp_path, capsys):
    """Runs distill on the chain's backbone with options, and returns how it is refused."""

    def refusal(*options, **variables):
        write_task_set(tmp_path / "data")
        backbone = chain / "pretrain-backbone" / "model"
        arguments = command("distill", tmp_path / "run", tmp_path / "data", *FRESH, BACKBONE=backbone, **variables)
        assert tagi([*arguments, *options]) != 0
        return capsys.readouterr().err

    return refusal


def test_another_models_tokenizer_is_refused(refusal, tmp_path):
    build_byte_tokenizer().save_pretrained(tmp_path / "other")
    told = refusal(TOKENIZER=tmp_path / "other")
    assert "its ids mean something else there; take the tokenizer of" in told
    assert f"{tmp_path / 'other'} has" in told


def test_prompts_of_another_kind_of_model_are_refused(refusal):
    assert "set --data.init_args.prompt=t5" in refusal("--data.init_args.prompt=causal")

import pytest
from commands import command, tagi

from tagi_lightning.cli.errors import told_briefly, with_option


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.init_args.loss.lambda1=-5", "tagi fit: loss.lambda1 must be at least 0, got -5.0"),
        ("--model.init_args.tagi.lora.rank=0", "tagi fit: lora.rank must be at least 1, got 0"),
        ("--model.init_args.generation.num_beams=0", "tagi fit: num_beams must be at least 1, got 0"),
        ("--data.init_args.tasks_per_batch=0", "tagi fit: tasks_per_batch must be at least 1, got 0"),
    ],
)
def test_what_a_constructor_refuses_is_its_reason_alone(task_set, tmp_path, capsys, option, told):
    tokenizer = f"--tokenizer={task_set / 'tokenizer'}"
    assert tagi(command("distill", tmp_path, task_set, tokenizer, option)) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == told
    assert "Namespace" not in said


def test_a_value_of_another_type_is_told_with_its_whole_option(task_set, tmp_path, capsys):
    arguments = command("evaluate", tmp_path, task_set, f"--tokenizer={task_set / 'tokenizer'}")
    for option, told in (
        ("--model.init_args.generation.num_beams=x", "Expected a <class 'int'>. Got value: x"),
        ("--data.init_args.setting=all", "Expected a typing.Literal['def', 'def+2pos']. Got value: all"),
        ("--trainer.precision=half", "Got value: half"),
    ):
        with pytest.raises(SystemExit):
            tagi([*arguments, option])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {option.partition('=')[0]}: Expected")
        assert error.endswith(told)


def test_other_messages_stay_as_they_are():
    assert with_option("unrecognized arguments: --x") == "unrecognized arguments: --x"
    with pytest.raises(ValueError, match=r"^first line\nsecond line$"), told_briefly():
        raise ValueError("first line\nsecond line")

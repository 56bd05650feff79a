import json
import re
import shutil

import pytest
import torch
from commands import copy_stages, make, tagi, tagi_commands

from tagi_lightning.cli.errors import brief
from tagi_lightning.stages.base import Stage


def check(capsys, stage, run, data, *options, **variables):
    """Runs `tagi check` with the words with which make runs a stage; returns exit code, output and problems."""
    [arguments] = tagi_commands(stage, RUN=run, DATA=data, **variables)
    name = "backbone.yaml" if stage == "pretrain-backbone" else "tasks.yaml"
    overlay = [] if stage == "pretrain" else [f"--config={data.with_name(name)}"]
    capsys.readouterr()
    code = tagi(["check", *arguments[1:], *overlay, *options])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def begun(chain, tmp_path):
    """A run that has everything but distill."""
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "teachers", "pretrain", "align")
    return tmp_path / "run"


def files(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("stage", ["pretrain-backbone", "teachers", "pretrain", "align", "distill", "evaluate"])
def test_a_good_configuration_is_well_and_nothing_is_written(stage, begun, chain, task_set, capsys, monkeypatch):
    if stage == "evaluate":
        copy_stages(chain, begun, "distill")
    else:
        shutil.rmtree(begun / stage, ignore_errors=True)
    monkeypatch.setattr(Stage, "on_train_batch_start", lambda *_: pytest.fail("it trains"))
    before = files(begun, task_set)
    code, out, err = check(capsys, stage, begun, task_set)
    assert (code, err) == (0, "")
    assert files(begun, task_set) == before
    assert "memory: about" in out
    assert out.splitlines()[-1] == "nothing is wrong"
    assert ("time: " in out) == ("disk: " in out) == (stage != "evaluate")


def test_every_fault_is_told_in_one_run(begun, task_set, tmp_path, capsys):
    shutil.rmtree(begun / "pretrain")
    shutil.rmtree(begun / "align")
    (begun / "teachers" / "model" / "model.safetensors").write_bytes(b"cut off")
    shutil.copytree(task_set, tmp_path / "broken")
    victims = sorted((tmp_path / "broken" / "tasks").glob("*.json"))[:2]
    victims[0].unlink()
    victims[1].write_text("{", encoding="utf-8")
    shutil.copy(task_set.with_name("tasks.yaml"), tmp_path / "tasks.yaml")
    (tmp_path / "more.yaml").write_text("model: {init_args: {lossy: 1, optimizer: {lr: fast}}}\nnix: {x: 1}\n")
    options = [
        *("--config", tmp_path / "more.yaml", "--config=nowhere.yaml"),
        *("--trainer.max_stepz=3", "--model.init_args.tagi.lora.rank=0", "--trainer.precision=bf16-true"),
        *("--data.init_args.prompt=causal", "--data.init_args.tasks_per_batch=two", "--backbone.dtype=float8"),
    ]
    code, _, err = check(capsys, "distill", begun, tmp_path / "broken", *options)
    assert code == 1
    for fault in (
        "lossy",
        "optimizer.lr",
        "nix",
        "no configuration nowhere.yaml",
        "trainer.max_stepz",
        "rank must be at least 1",
        "would not keep the trained weights in float32",
        "prompt=causal does not go with backbone",
        "data.init_args.tasks_per_batch",
        "backbone.dtype",
        victims[0].stem,
        victims[1].name,
        "starts from what pretrain trained",
        str(begun / "teachers" / "model"),
    ):
        assert fault in err, fault
    assert "more.yaml: model.init_args.lossy" in err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--model.class_path=Distil"], "Distil"),
        (["--config", "{data: [}"], "cannot be read as YAML"),
        (["--data.init_args.setting=def+3pos"], "data.init_args.setting"),
        (["--data.init_args.with_prompt=false"], "data.with_prompt=true"),
        (["--data.init_args.max_input_length=4"], "definition alone longer than max_input_length=4"),
        (["--data.init_args.categories=[filter, nonsense]"], "nonsense"),
        (["--tokenizer=/nowhere/at/all"], "/nowhere/at/all"),
        (["--backbone.dtype=float16"], "overflow in float16"),
        (["--trainer.precision=bf16-true"], "would not keep the trained weights in float32"),
        (["--trainer.strategy=fsdp", "--backbone.dtype=bfloat16"], "does not go with --trainer.strategy=fsdp"),
        (["--trainer.strategy=nonsense"], "strategy=nonsense"),
        (["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:10"], "no number of steps"),
        (["--data.init_args.tasks_per_batch=0"], "tasks_per_batch must be at least 1, got 0"),
        (["--data.init_args.instances_per_task=-2"], "instances_per_task must be at least 1, got -2"),
        (["--data.init_args.max_test_instances=0"], "max_test_instances must be at least 1, or null for all, got 0"),
        (["--model.init_args.generation.num_beams=0"], "num_beams must be at least 1, got 0"),
        (["--trainer.accelerator=gpu"], "accelerator=gpu"),
        (["--model.init_args.teachers=nowhere"], "nowhere is not there"),
        (["--model.init_args.tagi.lora.rank=8"], "rank is 16 there and 8 here"),
        (["--backbone.name=no/such/model/here"], "no/such/model/here"),
        (["stray"], "stray"),
    ],
)
def test_each_fault_is_named(options, fault, begun, task_set, capsys):
    if "gpu" in fault and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = check(capsys, "distill", begun, task_set, *options)
    assert code == 1
    assert fault in err


def test_another_backbones_tokenizer_is_told(begun, task_set, tmp_path, capsys):
    shutil.copytree(task_set / "tokenizer", tmp_path / "other")
    document = json.loads((tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"] += [
        {**document["added_tokens"][-1], "id": 9000 + number, "content": f"<x{number}>"} for number in range(99)
    ]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    code, _, err = check(capsys, "distill", begun, task_set, f"--tokenizer={tmp_path / 'other'}")
    assert code == 1
    assert "its ids mean something else there" in err


@pytest.mark.parametrize("content", ["{", '{"names": 3}'])
def test_damaged_teachers_are_told_also_where_the_data_cannot_be_read(begun, task_set, tmp_path, capsys, content):
    (begun / "teachers" / "model" / "config.json").write_text(content)
    shutil.copy(task_set.with_name("tasks.yaml"), tmp_path / "tasks.yaml")
    shutil.copytree(task_set, tmp_path / "broken")
    victim = min((tmp_path / "broken" / "tasks").glob("*.json"))
    victim.write_text("{", encoding="utf-8")
    code, _, err = check(capsys, "distill", begun, tmp_path / "broken")
    assert code == 1
    assert str(begun / "teachers" / "model" / "config.json") in err
    assert victim.name in err


def test_teachers_of_other_categories_are_told(begun, task_set, capsys):
    code, _, err = check(capsys, "distill", begun, task_set, "--data.init_args.categories=[count, sort]")
    names = json.loads((begun / "teachers" / "model" / "config.json").read_text(encoding="utf-8"))["names"]
    if not {"count", "sort"} <= set(names):
        assert code == 1
        assert "count" in err or "sort" in err
        return
    assert code == 1
    assert "the teachers do not fit the training categories" in err


def test_a_run_folder_of_another_configuration_is_told_without_what_is_wrong_here(chain, task_set, capsys):
    options = ["--model.init_args.optimizer.lr=0.5", "--data.init_args.tasks_per_batch=two"]
    code, _, err = check(capsys, "distill", chain, task_set, *options)
    assert code == 1
    assert "was made with another configuration" in err
    assert re.search(r"  model.init_args.optimizer.lr: \S+ there, 0.5 now", err)
    assert not re.search(r"  data.init_args.tasks_per_batch: \S+ there", err)


def test_a_finished_stage_is_well(chain, task_set, capsys):
    code, out, _ = check(capsys, "distill", chain, task_set, "--trainer.max_steps=3")
    assert code == 0
    assert "already finished" in out


def test_no_room_for_the_weights_is_told_before_they_are_made(begun, task_set, capsys, monkeypatch):
    monkeypatch.setattr("tagi_lightning.cli.check_needs.available_memory", lambda: 2**20)
    monkeypatch.setattr(Stage, "load_run_backbone", lambda *_: pytest.fail("it loads"))
    code, _, err = check(capsys, "distill", begun, task_set)
    assert code == 1
    assert "the weights alone are" in err
    assert "GiB are free on this machine; lower data.init_args.tasks_per_batch" in err


def test_no_room_on_the_disk_is_told(begun, task_set, capsys, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("tagi_lightning.cli.check_needs.shutil.disk_usage", lambda _: usage)
    code, _, err = check(capsys, "distill", begun, task_set)
    assert code == 1
    assert "make room or name another RUN" in err


def test_data_that_a_run_would_make_are_made_aside(tmp_path, capsys, chain):
    (tmp_path / "tasks.yaml").write_text((chain.parents[1] / "tasks" / "tasks.yaml").read_text(encoding="utf-8"))
    (tmp_path / "backbone.yaml").write_text((chain.parents[1] / "tasks" / "backbone.yaml").read_text(encoding="utf-8"))
    code, out, err = check(capsys, "pretrain-backbone", tmp_path / "run", tmp_path / "data")
    assert (code, err) == (0, "")
    assert "90 train tasks, 30 test tasks" in out
    assert {path.name for path in tmp_path.iterdir()} == {"tasks.yaml", "backbone.yaml"}


def test_the_data_of_another_stage_are_refused(begun, task_set, capsys):
    [words] = tagi_commands("distill", RUN=begun, DATA=task_set)
    words = [word.replace("data/synthetic.yaml", "data/synthetic-text.yaml") for word in words[1:]]
    capsys.readouterr()
    assert tagi(["check", *words]) == 1
    told = capsys.readouterr().err
    assert "data.init_args.with_prompt: Option 'with_prompt' is not accepted" in told
    assert "distill reads the data of InstructionDataModule or its kinds, not PlainTextDataModule" in told


def test_make_checks_a_stage_with_the_words_it_would_run():
    told, run = (
        make("--dry-run", *words).stdout.splitlines() for words in (("check-config", "STAGE=align"), ("align",))
    )
    assert [line.replace("tagi check", "tagi fit") for line in told] == run
    refused = make("--dry-run", "check-config", check=False)
    assert refused.returncode != 0
    assert "give STAGE=<stage>" in refused.stderr


def test_a_message_is_cut_to_what_it_says():
    message = """Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'X'>]
  Errors:
    - Problem with given class_path 'data_modules.SNIDataModule':
        Option 'foo' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'init_args': {'foo': 2}}
"""
    assert brief(message) == "Option 'foo' is not accepted"
    assert brief("short") == "short"

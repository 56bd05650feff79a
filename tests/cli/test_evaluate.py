import json
import shutil

import pytest
import torch
from commands import command, copy_stages, tagi, write_task_set

from tagi_lightning.backbones import BackboneConfig, load_backbone
from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.serialization import read_folder, save_tagi, write_folder

PASSES = ("each_demonstration", "few_shot")
ALL = [*HEURISTICS, *(name for name, spec in SYSTEMS.items() if spec.data not in PASSES)]
FACTS = {"system", "seed", "python", "versions", "commit"}


def systems(*names):
    return f"--model.init_args.systems=[{','.join(names)}]"


@pytest.fixture(scope="module")
def evaluated(chain, task_set, tmp_path_factory):
    """A run with every system evaluated, and what that printed."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    copy_stages(chain, run, "pretrain-backbone", "teachers", "distill")
    # four of the six instances of a training task are left for the teachers
    arguments = command("evaluate", run, task_set, systems(*ALL), "--data.init_args.max_train_instances=2")
    assert tagi(arguments) == 0
    return run, arguments


def metrics(run, system):
    return json.loads((run / "evaluate" / system / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("system", ALL)
def test_a_system_leaves_predictions_whose_score_is_its_metrics(evaluated, system, capsys):
    folder = evaluated[0] / "evaluate" / system
    assert {path.name for path in folder.iterdir()} == {"predictions.jsonl", "metrics.json", "config.yaml"}
    assert tagi(["score", "--predictions", folder / "predictions.jsonl"]) == 0
    scored = json.loads(capsys.readouterr().out)
    written = metrics(evaluated[0], system)
    assert scored.items() <= written.items()
    assert {"overall", "by_task", "by_category"} <= scored.keys()
    assert written.keys() >= FACTS
    assert written["system"] == system
    assert scored["overall"]["n"] == len((folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines())


def test_every_test_instance_is_answered_once_by_every_system(evaluated, task_set):
    names = (task_set / "splits/default/test_tasks.txt").read_text(encoding="utf-8").split()
    expected = {(name, f"{name}-{row}") for name in names for row in range(2)}
    for system in [name for name in ALL if name in HEURISTICS or SYSTEMS[name].data != "held_out"]:
        lines = (evaluated[0] / "evaluate" / system / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert {(row["task"], row["id"]) for row in rows} == expected
        assert len(rows) == len(expected)


def test_teachers_are_scored_on_instances_of_training_tasks_that_training_left_out(evaluated, task_set):
    lines = (evaluated[0] / "evaluate/teachers/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    training = (task_set / "splits/default/train_tasks.txt").read_text(encoding="utf-8").split()
    assert {row["task"] for row in rows} == set(training)
    assert len(rows) == 4 * len(training)


def test_the_wrong_instruction_is_another_tasks(evaluated):
    def instructions(system):
        lines = (evaluated[0] / "evaluate" / system / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["task"]: row["instruction_sha256"] for row in map(json.loads, lines)}

    right, wrong = instructions("tagi"), instructions("wrong_instruction")
    assert all(wrong[task] != right[task] for task in right)
    assert set(wrong.values()) == set(right.values())


def test_controls_tell_what_they_were_made_of(evaluated, task_set):
    names = {
        split: (task_set / f"splits/default/{split}_tasks.txt").read_text(encoding="utf-8").split()
        for split in ("train", "test")
    }
    mean, teachers = metrics(evaluated[0], "mean_adapter"), metrics(evaluated[0], "mean_teachers")
    assert mean["mean_of"] == len(names["train"])
    assert teachers["mean_of"] == len({name.split("_")[1] for name in names["train"]})
    for found in (mean, teachers):
        assert 0 < found["kept"] <= 1
        assert 0 < found["agreement"] <= 1.0001
    nearest = metrics(evaluated[0], "nearest_teacher")["nearest"]
    assert nearest.keys() == set(names["test"])
    assert {task for task, _ in nearest.values()} <= set(names["train"])
    assert metrics(evaluated[0], "paraphrased")["paraphrases"] == {
        "own": len(names["test"]), "rewritten": 0, "changed_words": 0.0
    }  # fmt: skip


def test_cost_is_relative_to_the_concatenated_backbone_and_weights_are_named(evaluated):
    run = evaluated[0]
    assert metrics(run, "concatenated")["relative_flops"] == 1.0
    assert metrics(run, "teachers_backbone")["relative_flops"] == 1.0
    assert 0 < metrics(run, "no_instruction")["relative_flops"] < 1
    assert metrics(run, "tagi")["relative_flops"] == metrics(run, "wrong_instruction")["relative_flops"]
    assert metrics(run, "tagi")["relative_flops_formula"] > 0
    # the mean adapter generates nothing for a test task, another task's reads two instructions
    assert (
        metrics(run, "mean_adapter")["flops"] < metrics(run, "tagi")["flops"] < metrics(run, "wrong_adapter")["flops"]
    )
    assert metrics(run, "nearest_teacher")["flops"] == metrics(run, "mean_teachers")["flops"]
    for system in ("mean_adapter", "mean_teachers", "nearest_teacher"):
        assert metrics(run, system)["flops_leave_out"]
    assert metrics(run, "tagi")["weights"] == str(run / "distill" / "model")
    assert "weights" not in metrics(run, "concatenated")
    digests = {metrics(run, system)["backbone_digest"] for system in ALL if system in SYSTEMS}
    assert len(digests) == 1


def test_results_are_kept_unless_asked(evaluated, capsys):
    run, arguments = evaluated
    files = {path: path.stat().st_mtime_ns for path in (run / "evaluate").rglob("*.json*")}
    assert tagi([*arguments, systems("tagi", "copy_input")]) == 0
    assert "tagi is already in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run / "evaluate").rglob("*.json*")} == files
    before = metrics(run, "tagi")["overall"]
    assert tagi([*arguments, systems("tagi"), "--overwrite=true"]) == 0
    assert metrics(run, "tagi")["overall"] == before
    assert files[run / "evaluate/tagi/metrics.json"] != (run / "evaluate/tagi/metrics.json").stat().st_mtime_ns


def test_the_table_names_every_system_with_its_scores(evaluated, capsys):
    assert tagi(["compare", "--run", evaluated[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ALL)
    assert len({len(line) for line in lines}) == 1
    [row] = [line for line in lines if line.startswith("| TAGI  ")]
    assert f"{metrics(evaluated[0], 'tagi')['overall']['rougeL']:.2f}" in row


def test_an_unknown_system_is_an_error_that_lists_the_known(chain, task_set, capsys):
    assert tagi(command("evaluate", chain, task_set, systems("tagi", "oracle"))) == 1
    message = capsys.readouterr().err
    assert "unknown systems oracle" in message
    assert all(name in message for name in ALL)
    assert not (chain / "evaluate").exists()


def test_weights_of_another_backbone_are_refused(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = command("pretrain-backbone", run, task_set, "--seed_everything=5", "--trainer.max_steps=1")
    assert tagi(arguments) == 0
    weights = f"--model.init_args.weights={chain / 'distill' / 'model'}"
    assert tagi(command("evaluate", run, task_set, systems("tagi"), weights)) == 1
    assert "was trained on backbone" in capsys.readouterr().err


def test_answers_do_not_depend_on_the_number_of_examples_in_a_batch(chain, task_set, tmp_path):
    texts = []
    for size in (1, 100):
        run = tmp_path / str(size)
        copy_stages(chain, run, "pretrain-backbone", "distill")
        options = [systems("tagi"), f"--data.init_args.eval_batch_size={size}", "--model.init_args.flops=false"]
        assert tagi(command("evaluate", run, task_set, *options)) == 0
        lines = (run / "evaluate/tagi/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        texts.append({row["id"]: row["prediction"] for row in map(json.loads, lines)})
    assert texts[0] == texts[1]
    assert torch.is_grad_enabled()


def test_results_of_other_options_or_weights_are_not_shown_as_todays(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(chain, run, symlinks=True)
    shutil.rmtree(run / "evaluate", ignore_errors=True)
    arguments = command("evaluate", run, task_set, "--model.init_args.systems=[no_instruction,tagi]")
    assert tagi(arguments) == 0
    assert tagi(arguments) == 0
    assert "already in" in capsys.readouterr().out
    assert tagi([*arguments, "--data.init_args.max_test_instances=1"]) == 1
    assert "max_test_instances" in capsys.readouterr().err
    assert tagi(command("distill", run, task_set, "--trainer.max_steps=7", "--trainer.log_every_n_steps=1")) == 0
    assert tagi(arguments) == 1
    assert "the hypernetwork was trained on since" in capsys.readouterr().err
    assert tagi([*arguments, "--overwrite=true"]) == 0


@pytest.mark.parametrize(
    ("system", "split", "changed"),
    [("copy_input", "test", True), ("copy_input", "train", False), ("teachers_backbone", "train", True)],
)
def test_results_of_other_tasks_are_not_shown_as_todays(chain, tmp_path, capsys, system, split, changed):
    data = tmp_path / "data"
    write_task_set(data)
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    arguments = command("evaluate", tmp_path / "run", data, systems(system), "--model.init_args.flops=false")
    arguments.append("--data.init_args.max_train_instances=2")
    assert tagi(arguments) == 0
    name = (data / "splits" / "default" / f"{split}_tasks.txt").read_text(encoding="utf-8").split()[0]
    file = data / "tasks" / f"{name}.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    for instance in values["Instances"]:
        instance["output"] = ["another answer"]
    file.write_text(json.dumps(values), encoding="utf-8")
    capsys.readouterr()
    assert tagi(arguments) == int(changed)
    assert ("the tasks have changed since" in capsys.readouterr().err) is changed


def test_an_option_that_was_not_there_yet_was_at_its_default(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    arguments = command("evaluate", tmp_path, task_set, systems("no_instruction"), "--model.init_args.flops=false")
    assert tagi(arguments) == 0
    written = tmp_path / "evaluate" / "no_instruction" / "config.yaml"
    text = written.read_text(encoding="utf-8")
    older = "".join(line for line in text.splitlines(keepends=True) if "bare_prompt" not in line)
    assert older != text
    written.write_text(older, encoding="utf-8")
    capsys.readouterr()
    assert tagi(arguments) == 0
    assert tagi([*arguments, "--data.init_args.bare_prompt=true"]) == 1
    assert "bare_prompt" in capsys.readouterr().err


def test_other_prompts_than_in_training_are_refused_and_another_precision_is_told(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "distill")
    arguments = command("evaluate", tmp_path / "run", task_set, systems("tagi"))
    assert tagi([*arguments, "--data.init_args.prompt=causal"]) == 1
    assert "was trained on other prompts or states" in capsys.readouterr().err
    assert tagi([*arguments, "--backbone.dtype=bfloat16"]) == 0
    assert "trained otherwise: backbone.dtype 'float32' there, 'bfloat16' here" in capsys.readouterr().out


def saved_model(chain, folder, **config):
    """Saves an untrained model of the chain's backbone, whose saved weights are moved away from their start."""
    backbone = load_backbone(BackboneConfig(str(chain / "pretrain-backbone" / "model")))
    model = TagiModel(backbone, TagiConfig(**config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_tagi(model, folder)
    return f"--model.init_args.weights={folder}"


def rows_of(run, system):
    lines = (run / "evaluate" / system / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def test_the_bare_backbone_stays_as_it_was_where_training_changed_it(chain, task_set, tmp_path):
    weights = saved_model(
        chain,
        tmp_path / "tuned" / "distill" / "model",
        reads="prompt",
        trained_backbone="all",
        hypernetwork=HypernetworkConfig(enabled=False),
        fusion=FusionConfig(enabled=False),
        decoder_memory=False,
    )
    names = ("no_instruction", "concatenated")
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    for run, options in ((alone, [systems(*names)]), (beside, [systems("tagi", *names), weights])):
        copy_stages(chain, run, "pretrain-backbone")
        assert tagi(command("evaluate", run, task_set, *options)) == 0
    for name in names:
        assert rows_of(alone, name) == rows_of(beside, name)
        assert metrics(alone, name)["backbone_digest"] == metrics(beside, name)["backbone_digest"]
    # the trained model reads the prompt, and answers by other weights
    assert rows_of(beside, "tagi") != rows_of(beside, "concatenated")
    assert metrics(beside, "tagi")["relative_flops"] == 1.0
    assert "relative_flops_formula" not in metrics(beside, "tagi")
    # trained in float32, it is stored as everything else
    copy_stages(chain, tmp_path / "half", "pretrain-backbone")
    half = command("evaluate", tmp_path / "half", task_set, systems("tagi"), weights, "--backbone.dtype=bfloat16")
    assert tagi(half) == 0
    assert 0 < metrics(tmp_path / "half", "tagi")["overall"]["n"] == len(rows_of(beside, "tagi"))


def test_controls_of_the_adapter_are_refused_where_all_instructions_have_one(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone")
    constant = HypernetworkConfig(generator="constant")
    weights = saved_model(chain, tmp_path / "distill" / "model", hypernetwork=constant)
    assert tagi(command("evaluate", tmp_path / "run", task_set, systems("tagi", "mean_adapter"), weights)) == 1
    assert "leave out mean_adapter and wrong_adapter" in capsys.readouterr().err


def test_results_of_other_teachers_are_not_shown_as_todays(chain, task_set, tmp_path, capsys):
    run = tmp_path / "run"
    copy_stages(chain, run, "pretrain-backbone", "teachers")
    arguments = command("evaluate", run, task_set, systems("mean_teachers"), "--model.init_args.flops=false")
    assert tagi(arguments) == tagi(arguments) == 0
    tensors, config = read_folder(run / "teachers" / "model", "teachers", "")
    write_folder(run / "teachers" / "model", {name: 2 * tensor for name, tensor in tensors.items()}, config)
    assert tagi(arguments) == 1
    assert "the teachers were trained on since" in capsys.readouterr().err


def test_teachers_that_a_system_does_not_use_make_no_difference(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone", "distill")
    arguments = command("evaluate", tmp_path, task_set, systems("tagi"), "--model.init_args.flops=false")
    assert tagi([*arguments, f"--model.init_args.teachers={chain / 'teachers' / 'model'}"]) == 0
    assert tagi([*arguments, "--model.init_args.teachers=none"]) == 0
    assert "tagi is already in" in capsys.readouterr().out


def test_teachers_of_other_categories_are_refused(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "teachers")
    options = [systems("nearest_teacher"), "--data.init_args.categories=[first,last]"]
    assert tagi(command("evaluate", tmp_path / "run", task_set, *options)) == 1
    assert "give the same data options" in capsys.readouterr().err

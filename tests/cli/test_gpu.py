"""The chain on one GPU in bf16-mixed, through the commands that a user types."""

import json
import math

import pytest
import torch
from commands import STAGES, command, copy_stages, record_of, tagi, weights
from safetensors.torch import load_file

from tagi_lightning.peft_io.folders import WEIGHTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]

DEVICE = "cuda"
GPU = ("--config=experiments/trainers/gpu.yaml", "--trainer.log_every_n_steps=1")
VALIDATED = (
    "--data.init_args.val_split=instances",
    "--data.init_args.val_share=0.2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=null",
)
SYSTEMS = ("concatenated", "tagi", "wrong_adapter", "mean_adapter", "nearest_teacher", "mean_teachers")


@pytest.fixture(scope="module")
def trained(task_set, tmp_path_factory):
    """The run folder of the whole chain, a few steps a stage on the GPU; not to be changed."""
    run = tmp_path_factory.mktemp("gpu") / "run"
    for stage in STAGES:
        own = VALIDATED if stage == "teachers" else ()
        arguments = command(stage, run, task_set, *GPU, "--trainer.max_steps=4", "--inspect_every=null", *own)
        assert tagi(arguments) == 0, stage
    return run


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_finite_weights_in_float32(trained, stage):
    record = record_of(trained, stage)
    assert (record["status"], record["precision"], record["global_step"]) == ("finished", "bf16-mixed", 4)
    assert all(math.isfinite(value) for value in record["metrics"].values())
    for tensor in weights(trained, stage).values():
        assert tensor.isfinite().all()
        assert tensor.dtype == torch.float32 or not tensor.is_floating_point()


def test_teachers_are_compared_after_training(trained):
    report = json.loads((trained / "teachers" / "report.json").read_text(encoding="utf-8"))
    assert any(row["instances"] and math.isfinite(row["gain"]) for row in report["teachers"])


@pytest.mark.parametrize("stage", ["teachers", "distill"])
def test_an_interrupted_stage_goes_on(trained, task_set, tmp_path, stage):
    copy_stages(trained, tmp_path, *STAGES[: STAGES.index(stage)])
    own = VALIDATED if stage == "teachers" else ()
    for steps in (2, 4):
        assert tagi(command(stage, tmp_path, task_set, *GPU, f"--trainer.max_steps={steps}", *own)) == 0
    assert record_of(tmp_path, stage)["global_step"] == 4


@pytest.mark.parametrize(
    "options",
    [
        ["--backbone.dtype=bfloat16"],
        ["--backbone.quantization=int8"],
        ["--backbone.gradient_checkpointing=true"],
        ["--model.init_args.loss.teacher_cache.enabled=true"],
        ["--model.init_args.tagi.hypernetwork.standardize=true", "--model.init_args.init_from=none"],
        ["--model.init_args.tagi.hypernetwork.writes=both", "--model.init_args.init_from=none"],
        ["--model.init_args.tagi.hypernetwork.generator=attention", "--model.init_args.init_from=none"],
        ["--model.init_args.alignment.target=product"],
        ["--model.init_args.tagi.trained_backbone=all", "--model.init_args.instruction_cache_mb=0"],
        ["--trainer.precision=32-true"],
    ],
    ids=lambda options: options[0].rpartition(".")[2],
)
def test_distillation_runs_with_each_option(trained, task_set, tmp_path, options):
    copy_stages(trained, tmp_path, *STAGES[:-1])
    cache = f"--data.init_args.cache_dir={tmp_path / 'cache'}"
    assert tagi(command("distill", tmp_path, task_set, *GPU, "--trainer.max_steps=2", cache, *options)) == 0
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, "distill").values())


@pytest.fixture(scope="module")
def evaluated(trained, task_set):
    """The run with its systems evaluated on the GPU."""
    systems = f"--model.init_args.systems=[{','.join(SYSTEMS)}]"
    assert tagi(command("evaluate", trained, task_set, *GPU, systems)) == 0
    return trained


@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_and_controls_are_scored_and_counted(evaluated, system):
    metrics = json.loads((evaluated / "evaluate" / system / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["overall"]["n"] > 0
    assert metrics["flops"] > 0


def test_a_model_writes_the_adapter_of_the_cpu_and_answers(trained, tmp_path, capsys):
    model = ["--model", trained / "distill" / "model", "--instruction", "Reverse the words."]
    found = []
    for device in ("cpu", DEVICE):
        assert tagi(["predict", *model, "--input", "a b c", "--max_new_tokens", "4", "--device", device]) == 0
        [row] = map(json.loads, capsys.readouterr().out.splitlines())
        assert row.keys() == {"id", "output"}
        folder = tmp_path / f"on-{len(found)}"
        assert tagi(["adapt", *model, "--output", folder, "--device", device]) == 0
        capsys.readouterr()
        [made] = folder.iterdir()
        found.append(load_file(made / WEIGHTS))
    here, there = found
    assert here.keys() == there.keys()
    assert all(torch.allclose(here[name], tensor, rtol=1e-3, atol=1e-4) for name, tensor in there.items())

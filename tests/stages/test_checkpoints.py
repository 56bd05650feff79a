import shutil

import pytest
import torch
from commands import STAGES, STEPS, command, copy_stages, tagi, weights

from tagi_lightning.cli.fit import FitCLI, train

TRAINED = {
    "pretrain-backbone": ("backbone.",),
    "teachers": ("bank.",),
    "pretrain": ("model.hypernetwork.", "model.fusion."),
    "align": ("model.hypernetwork.",),
    "distill": ("model.hypernetwork.", "model.fusion."),
}


def last(run, stage):
    return torch.load(run / stage / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_trains_and_loads_without_running_code(chain, stage):
    checkpoint = last(chain, stage)
    prefixes = TRAINED[stage]
    names = checkpoint["state_dict"].keys()
    assert all(name.startswith(prefixes) for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
    assert checkpoint["tagi"]["stage"] == stage
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["run"]["configuration"]["trainer"]["max_steps"] == STEPS
    assert checkpoint["run"]["versions"]["torch"] == torch.__version__
    assert checkpoint["run"].keys() >= {"commit", "python"}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_trains_its_own_weights_and_leaves_the_backbone_bit_for_bit(chain, task_set, tmp_path, stage):
    run = tmp_path / "run"
    copy_stages(chain, run, *STAGES[: STAGES.index(stage)])
    # rates that move even what starts behind a zero
    options = [f"--trainer.max_steps={STEPS}", "--model.init_args.optimizer.lr=0.01"]
    arguments = command(stage, run, task_set, *options, "--model.init_args.optimizer.warmup=0")
    cli = FitCLI([str(word) for word in arguments[1:]])
    cli.model.trainer = cli.trainer
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    cli.trainer.datamodule = cli.datamodule
    cli.model.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in cli.model.named_parameters()}
    assert train(cli) == 0
    moved = {name for name, p in cli.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert moved == trained
    assert {name for name in before if name.startswith(TRAINED[stage])} == trained
    assert weights(run, "pretrain-backbone").keys() == weights(chain, "pretrain-backbone").keys()


def refuse(run, task_set, capsys, *options):
    """Returns what is told when align goes on from a checkpoint that does not belong to it."""
    (run / "align" / "run.json").unlink()
    assert tagi(command("align", run, task_set, f"--trainer.max_steps={STEPS + 1}", *options)) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_a_checkpoint_of_another_stage_is_refused(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, *STAGES[:4])
    shutil.copy(tmp_path / "pretrain/checkpoints/last.ckpt", tmp_path / "align/checkpoints/last.ckpt")
    (tmp_path / "align/checkpoints/previous.ckpt").unlink()
    assert "the checkpoint is of stage 'pretrain', not 'align'" in refuse(tmp_path, task_set, capsys)


def test_a_checkpoint_of_another_rank_is_refused(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, *STAGES[:2], "align")
    (tmp_path / "teachers" / "run.json").unlink()
    shutil.rmtree(tmp_path / "teachers" / "checkpoints")
    assert tagi(command("teachers", tmp_path, task_set, "--trainer.max_steps=1", "--model.init_args.lora.rank=4")) == 0
    capsys.readouterr()
    options = ["--model.init_args.tagi.lora.rank=4", "--model.init_args.init_from=none"]
    assert "the checkpoint's weights do not fit this configuration" in refuse(tmp_path, task_set, capsys, *options)


def test_a_checkpoint_of_another_backbone_is_refused(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "align")
    for stage in STAGES[:2]:
        assert tagi(command(stage, tmp_path, task_set, "--trainer.max_steps=1", "--seed_everything=7")) == 0
    capsys.readouterr()
    message = refuse(tmp_path, task_set, capsys, "--model.init_args.init_from=none")
    assert "was trained on another backbone" in message

"""The commands that the Makefile composes, run in this process, on a task set made in a moment."""

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tagi_lightning.cli import main
from tagi_lightning.cli.fit import FitCLI
from tagi_lightning.data.p3.lists import test_datasets, train_datasets
from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain-backbone", "teachers", "pretrain", "align", "distill")
STEPS = 3
SYNTHETIC = {"train_instances": 6, "test_instances": 2, "documents_per_task": 1}
VALIDATED = (
    "--data.init_args.val_split=instances",
    "--data.init_args.val_share=0.2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=null",
    "--model.init_args.patience=1",
)
"""Teachers that are validated every second step, and stop where they no longer improve."""

torch.set_num_threads(1)  # a tiny model gains nothing from more threads, and loses much where cores are busy


def make(*words, check=True):
    """Runs make from the project's folder as a user would, whatever make called these tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, env=kept, capture_output=True, text=True, check=check
    )


def tagi_commands(target, **variables):
    """Returns the arguments of every `tagi` that `make target` would call."""
    lines = make("--dry-run", target, *(f"{name}={value}" for name, value in variables.items())).stdout.splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/tagi ")]


def tagi(arguments):
    """Runs `tagi` in this process from the project's folder; returns the exit code."""
    with contextlib.chdir(ROOT):
        return main([str(argument) for argument in arguments])


def write_task_set(folder):
    """Writes the smallest synthetic task set, and beside it the configurations that say so."""
    write_synthetic(folder, SyntheticConfig(**SYNTHETIC))
    tasks = {"data": {"init_args": {"synthetic": SYNTHETIC}}}
    backbone = {"data": {"init_args": {"tasks": tasks["data"]}}}
    for name, values in (("tasks", tasks), ("backbone", backbone)):
        folder.with_name(f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def write_p3_set(folder):
    """Writes rows and templates of two training sets and two test tasks of T0's lists; returns the rows' folder."""
    rows = folder / "p3"
    for dataset in (*train_datasets(["glue_mrpc", "paws"]), *test_datasets()[:2]):
        template = folder / "p3_templates" / dataset.template_folder / "templates.yaml"
        template.parent.mkdir(parents=True)
        jinja = f"{{{{left}}}} of {dataset.name.split('_')[-1]} {{{{right}}}} ? ||| {{{{ answer_choices[label] }}}}"
        entry = {"name": dataset.templates[0], "jinja": jinja, "answer_choices": "no ||| yes"}
        template.write_text(yaml.safe_dump({"templates": {"0": entry}}), encoding="utf-8")
        for split in ("train", "validation"):
            (rows / dataset.name).mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"left": f"cat {n}", "right": f"dog {n}", "label": n % 2}) for n in range(8)]
            (rows / dataset.name / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows


def command(stage, run, data, *options, **variables):
    """Returns the arguments with which make runs one stage on a task set of `write_task_set`."""
    overlay = {"pretrain": [], "pretrain-backbone": [f"--config={data.with_name('backbone.yaml')}"]}
    extra = overlay.get(stage, [f"--config={data.with_name('tasks.yaml')}"])
    [arguments] = tagi_commands(stage, RUN=run, DATA=data, **variables)
    return [*arguments, "--inspect_every=0", *extra, *options]


def built_stage(stage, run, task_set, monkeypatch, *options):
    """Returns a stage as training would start it, and its first batch."""
    cli = FitCLI([str(word) for word in command(stage, run, task_set, "--trainer.logger=false", *options)][1:])
    cli.model.trainer = cli.trainer
    cli.trainer.datamodule = cli.datamodule
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    cli.model.configure_model()
    monkeypatch.setattr(cli.model, "log", lambda *args, **kwargs: None)
    return cli.model, next(iter(cli.datamodule.train_dataloader()))


def interrupt_in_batch(monkeypatch, stage, number):
    """Presses Control-C in the training batch of that number, counted from 1."""
    step, batches = stage.training_step, []

    def interrupted(self, batch, batch_index):
        batches.append(batch_index)
        if len(batches) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_index)

    monkeypatch.setattr(stage, "training_step", interrupted)


def copy_stages(chain, run, *stages):
    """Gives a new run the results of some stages of another."""
    for stage in stages:
        shutil.copytree(chain / stage, run / stage)


def weights(run, stage):
    """Returns the tensors of a stage's model."""
    return load_file(run / stage / "model" / "model.safetensors")


def same_tensors(left, right):
    """Whether two dictionaries hold the same tensors, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def record_of(run, stage):
    """Returns a stage's run.json."""
    return json.loads((run / stage / "run.json").read_text(encoding="utf-8"))


@functools.cache
def build_task_set(base):
    """Writes the session's task set under `base`, once; returns its folder."""
    folder = base / "tasks" / "data"
    write_task_set(folder)
    return folder


@functools.cache
def build_chain(base):
    """Runs the session's chain under `base`, once; returns its run folder."""
    run = base / "chain" / "run"
    for stage in STAGES:
        options = [f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--inspect_every=null"]
        assert tagi(command(stage, run, build_task_set(base), *options)) == 0
    return run


@pytest.fixture(scope="session")
def task_set(tmp_path_factory):
    """A synthetic task set of a few instances; not to be changed."""
    return build_task_set(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """The run folder of the whole chain, a few steps a stage; not to be changed."""
    return build_chain(tmp_path_factory.getbasetemp())

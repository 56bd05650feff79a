import pytest
import torch
from commands import STAGES, command, tagi, write_task_set

STEPS = 3
torch.set_num_threads(1)  # a tiny model gains nothing from more, and loses much where cores are busy


@pytest.fixture(scope="session")
def task_set(tmp_path_factory):
    """A synthetic task set of a few instances; not to be changed."""
    folder = tmp_path_factory.mktemp("tasks") / "data"
    write_task_set(folder)
    return folder


@pytest.fixture(scope="session")
def chain(task_set, tmp_path_factory):
    """The run folder of the whole chain, three steps a stage; not to be changed."""
    run = tmp_path_factory.mktemp("chain") / "run"
    for stage in STAGES:
        assert tagi(command(stage, run, task_set, f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1")) == 0
    return run

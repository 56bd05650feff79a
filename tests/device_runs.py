"""Trainings on several devices: gloo processes on the CPU, forked or started as a person starts them."""

import os
import socket
import subprocess
import sys

import torch
from commands import ROOT
from lightning.pytorch.utilities import rank_zero_only
from reliability_runs import Process

import tagi_lightning.stages.base as base

FEWER_THREADS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def devices(count, strategy="ddp"):
    """Returns the options of a trainer with several devices."""
    return [f"--trainer.devices={count}", f"--trainer.strategy={strategy}"]


def double_precision():
    """Has a process of its own compute in float64 alone, also what models compute in float32 whatever their weights."""
    base.PRECISIONS = (*base.PRECISIONS, "64-true")
    to, softmax = torch.Tensor.to, torch.Tensor.softmax

    def widened(dtype):
        return torch.float64 if dtype is torch.float32 else dtype

    torch.Tensor.float = torch.Tensor.double
    torch.Tensor.to = lambda self, *args, **options: to(self, *map(widened, args), **options)
    torch.Tensor.softmax = lambda self, dim, dtype=None: softmax(self, dim, dtype=widened(dtype))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked(arguments, folder, count, before=None):
    """Begins one process a device, as SLURM or torchrun would; its log is `folder`/rank.log."""
    port = str(free_port())

    def join(rank):
        def joined():
            place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_PORT": port}
            rank_zero_only.rank = rank
            if before:
                before()

        return joined

    return [Process(arguments, folder / f"{rank}.log", join(rank)) for rank in range(count)]


def run_forked(arguments, folder, count, before=None):
    """Trains on several devices; returns the exit codes."""
    return [process.wait() for process in forked(arguments, folder, count, before)]


def started(arguments, log, **variables):
    """Starts `tagi` as a person does; Lightning starts the processes of the other devices."""
    command = [sys.executable, "-m", "tagi_lightning.cli", *map(str, arguments)]
    environment = os.environ | FEWER_THREADS | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | variables
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

"""What a run shows while it trains: throughput, sample answers, progress where there is no terminal."""

from tagi_lightning.callbacks.checkpoints import RunCheckpoint
from tagi_lightning.callbacks.hparams import HyperParameters
from tagi_lightning.callbacks.progress import LineProgress
from tagi_lightning.callbacks.samples import SampleTable
from tagi_lightning.callbacks.throughput import Throughput

__all__ = ["HyperParameters", "LineProgress", "RunCheckpoint", "SampleTable", "Throughput"]

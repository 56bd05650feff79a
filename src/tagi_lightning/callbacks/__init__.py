"""What a run keeps and shows while it trains: checkpoints, throughput, sample answers, progress without a terminal."""

from tagi_lightning.callbacks.checkpoints import BestCheckpoint, DurableCheckpointIO, LastCheckpoint
from tagi_lightning.callbacks.hparams import HyperParameters
from tagi_lightning.callbacks.preemption import StopAtBatch
from tagi_lightning.callbacks.progress import LineProgress
from tagi_lightning.callbacks.resume import ExactResume
from tagi_lightning.callbacks.samples import SampleTable
from tagi_lightning.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "DurableCheckpointIO",
    "ExactResume",
    "HyperParameters",
    "LastCheckpoint",
    "LineProgress",
    "SampleTable",
    "StopAtBatch",
    "Throughput",
]

"""What a run keeps and shows while it trains: checkpoints, throughput, sample answers, progress without a terminal."""

from tagi_lightning.callbacks.checkpoints import BestCheckpoint, DurableCheckpointIO, LastCheckpoint
from tagi_lightning.callbacks.devices import SharedBatches
from tagi_lightning.callbacks.finite import FiniteSteps, NonFiniteError
from tagi_lightning.callbacks.hparams import HyperParameters
from tagi_lightning.callbacks.inspection import InspectModel
from tagi_lightning.callbacks.preemption import StopAtBatch
from tagi_lightning.callbacks.progress import LineProgress
from tagi_lightning.callbacks.resume import ExactResume
from tagi_lightning.callbacks.samples import SampleTable
from tagi_lightning.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "DurableCheckpointIO",
    "ExactResume",
    "FiniteSteps",
    "HyperParameters",
    "InspectModel",
    "LastCheckpoint",
    "LineProgress",
    "NonFiniteError",
    "SampleTable",
    "SharedBatches",
    "StopAtBatch",
    "Throughput",
]

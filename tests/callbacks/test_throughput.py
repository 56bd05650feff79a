import time
from types import SimpleNamespace

import torch

from tagi_lightning.callbacks import Throughput
from tagi_lightning.callbacks.throughput import token_rows
from tagi_lightning.data.batch import TaskBatch, TextBatch, Tokens

ROWS = Tokens.pad([[5, 6, 1], [1]], pad_id=0)
TEXT = TextBatch(ROWS, torch.zeros(2, 4, dtype=torch.long))
INDEX = torch.tensor([0, 1])


class Logger:
    def __init__(self):
        self.figures = []

    def log_metrics(self, figures, step):
        self.figures.append(figures)


def trainer(every):
    return SimpleNamespace(log_every_n_steps=every, loggers=[Logger()], global_step=0, sanity_checking=False)


def test_every_row_that_a_stage_reads_counts():
    tasks = TaskBatch(ROWS, ROWS, torch.zeros(2, 1, dtype=torch.long), INDEX, INDEX)
    assert token_rows(TEXT) == [ROWS]
    assert token_rows(tasks) == [ROWS, ROWS]
    assert len(token_rows(TaskBatch(ROWS, ROWS, tasks.labels, INDEX, INDEX, prompt=ROWS))) == 3


def test_figures_are_those_of_the_batches_since_the_last():
    callback, run = Throughput(), trainer(2)
    callback.on_train_start(run, None)
    for batch in range(5):
        callback.on_train_batch_start(run, None, TEXT, batch)
        time.sleep(0.01)
        callback.on_train_batch_end(run, None, None, TEXT, batch)
    assert len(run.loggers[0].figures) == 2
    for figures in run.loggers[0].figures:
        assert 0 < figures["perf/examples_per_s"] <= 2 / 0.01
        assert figures["perf/tokens_per_s"] / figures["perf/examples_per_s"] == 2
        assert figures["perf/padding_share"] == 1 - 4 / 6
        assert 0 <= figures["perf/loader_share"] < 0.5


def test_short_epochs_and_validation_between_them_change_nothing():
    callback, run = Throughput(), trainer(2)
    callback.on_train_start(run, None)
    for _ in range(2):
        callback.on_train_batch_start(run, None, TEXT, 0)
        callback.on_train_batch_end(run, None, None, TEXT, 0)
        callback.on_validation_start(run, None)
        time.sleep(0.2)
        callback.on_validation_end(run, None)
    [figures] = run.loggers[0].figures
    assert figures["perf/examples_per_s"] > 4 / 0.2

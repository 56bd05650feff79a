import time
from types import SimpleNamespace

import torch

from tagi_lightning.callbacks import Throughput
from tagi_lightning.callbacks.throughput import token_masks
from tagi_lightning.data.batch import TaskBatch, TextBatch, Tokens, pad_labels

ROWS = Tokens.pad([[5, 6, 1], [1]], pad_id=0)
LABELS = pad_labels([[7, 8, 9, 1], [7, 8, 1]])
TEXT = TextBatch(ROWS, LABELS)
INDEX = torch.tensor([0, 1])


class Logger:
    def __init__(self):
        self.figures = []

    def log_metrics(self, figures, step):
        self.figures.append(figures)


def trainer(every):
    return SimpleNamespace(log_every_n_steps=every, loggers=[Logger()], global_step=0, sanity_checking=False)


def test_every_row_that_a_stage_reads_counts():
    tasks = TaskBatch(ROWS, ROWS, LABELS, INDEX, INDEX)
    assert token_masks(TEXT)["encoder"] == [ROWS.mask]
    assert token_masks(tasks)["encoder"] == [ROWS.mask, ROWS.mask]
    assert len(token_masks(TaskBatch(ROWS, ROWS, LABELS, INDEX, INDEX, prompt=ROWS))["encoder"]) == 3
    for batch in (TEXT, tasks):
        [decoder] = token_masks(batch)["decoder"]
        assert decoder.sum(1).tolist() == [4, 3]


def test_a_batch_without_examples_has_no_padding_in_the_decoder():
    callback, run = Throughput(), trainer(1)
    callback.on_train_start(run, None)
    callback.on_train_batch_start(run, None, None, 0)
    none = torch.empty(0, dtype=torch.long)
    batch = TaskBatch(ROWS, Tokens.pad([], 0), pad_labels([]), none, INDEX)
    callback.on_train_batch_end(run, None, None, batch, 0)
    [figures] = run.loggers[0].figures
    assert figures["perf/padding_share_decoder"] == 0
    assert figures["perf/padding_share"] == figures["perf/padding_share_encoder"] == 2 / 6


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
        assert figures["perf/padding_share_encoder"] == 2 / 6
        assert figures["perf/padding_share_decoder"] == 1 / 8
        assert figures["perf/padding_share"] == 3 / 14
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

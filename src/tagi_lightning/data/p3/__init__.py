"""P3: prompt templates as instructions, over raw rows or rows already rendered."""

from tagi_lightning.data.p3.lists import P3Dataset, test_datasets, train_datasets
from tagi_lightning.data.p3.reader import exchange_datasets, read_p3

__all__ = ["P3Dataset", "exchange_datasets", "read_p3", "test_datasets", "train_datasets"]

"""P3: prompt templates as instructions, over raw rows or rows already rendered."""

from tagi_lightning.data.p3.lists import P3Dataset, test_datasets, train_datasets
# from tagi_lightning.data.p3.reader import read_p3

__all__ = ["P3Dataset", "test_datasets", "train_datasets"]

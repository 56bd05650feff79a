"""Tasks as a tiny model reads them, to be looked at."""

from tagi_lightning.cli.inspect import tokenize
from tagi_lightning.data.task import Instance, Task


def make_tasks(count, split="train", categories=3, instances=2):
    """Returns tasks that say different things, in some categories."""
    return [
        Task(
            f"{split}{number:03d}",
            f"category {number % categories}",
            (f"Say the {number}. letter of ${split}$ and stop.",),
            (),
            tuple(Instance(f"{number}/{row}", f"abc {number} {row}", ("b", "B")) for row in range(instances)),
        )
        for number in range(count)
    ]


def tasks_for(loaded, train, test=0, instances=1):
    """Returns some tasks of each split as `loaded` reads them."""
    splits = {"train": make_tasks(train), "test": make_tasks(test, "test")}
    return tokenize(loaded, {split: tasks for split, tasks in splits.items() if tasks}, None, instances)

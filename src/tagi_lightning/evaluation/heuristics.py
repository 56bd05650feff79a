"""Baselines without a model: answers copied from the input or from the first demonstration.

Tk-Instruct reports ROUGE-L 14.20 for the input and 28.54 for the demonstration on the 119 test tasks of
Super-NaturalInstructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tagi_lightning.data.task import Instance, Task
from tagi_lightning.evaluation.predictions import Prediction


def copy_input(tasks: Iterable[Task]) -> list[Prediction]:
    """Answers every instance with its own input."""
    return _predict(tasks, lambda task, instance: instance.input)


def copy_demonstration(tasks: Iterable[Task]) -> list[Prediction]:
    """Answers every instance with the output of its task's first demonstration, with nothing where there is none."""
    return _predict(tasks, lambda task, instance: task.demonstrations[0].output if task.demonstrations else "")


def _predict(tasks: Iterable[Task], answer: Callable[[Task, Instance], str]) -> list[Prediction]:
    """Returns one row for each instance; choices are left out, since a copied answer ranks none."""
    return [
        Prediction(
            id=instance.id,
            task=task.name,
            category=task.category,
            dataset=task.dataset,
            template=task.template,
            instruction_sha256="",
            prediction=answer(task, instance),
            references=instance.references,
        )
        for task in tasks
        for instance in task.instances
    ]

"""Answers of the model to the first inputs of each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.evaluation.metrics import exact_match
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.inference.answers import answer
from tagi_lightning.inspection.tasks import InspectedTask, InspectedTasks
from tagi_lightning.model import TagiModel


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        task: Its task.
        input: What was asked.
        answer: What was answered.
        references: Acceptable answers.
    """

    task: InspectedTask
    input: str
    answer: str
    references: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is an acceptable one."""
        return bool(exact_match(self.answer, self.references))


@torch.no_grad()
def answer_tasks(
    model: TagiModel, tasks: InspectedTasks, tokenizer: PreTrainedTokenizerFast, generation: GenerationConfig
) -> list[Sample]:
    """Returns the answers to all examples of `tasks`, task by task.

    Args:
        model: The model.
        tasks: What is asked.
        tokenizer: Decodes generated ids.
        generation: How to decode.
    """
    by_name = {task.name: task for task in tasks.tasks}
    samples = []
    for batch in tasks.batches:
        batch = batch.to(model.backbone.model.device)
        adapter, inputs = model.adapt(model.conditions(batch)), model.inputs(batch)
        answers = answer(model, batch, inputs, adapter, generation, tokenizer)
        names = [batch.tasks[row] for row in batch.task_index.tolist()]
        found = zip(names, batch.inputs, answers.texts, batch.references, strict=True)
        samples += [Sample(by_name[name], text, answered, references) for name, text, answered, references in found]
    return samples


def to_rows(samples: Iterable[Sample]) -> list[Prediction]:
    """Returns answers as rows to be scored; an answer chosen among several is scored as one that was generated."""
    return [
        Prediction(str(place), each.task.name, each.task.category, "", "", "", each.answer, each.references)
        for place, each in enumerate(samples)
    ]


def one_a_task(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the first answer of each task."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.task.name, sample)
    return list(first.values())


def sample_lines(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    """Returns a table's heading and its lines: task, category, split, input, answer, reference, right or wrong."""
    lines: list[tuple[str, ...]] = [("task", "category", "split", "input", "answer", "reference", "right")]
    for each in samples:
        shown = [on_one_line(text, 200) for text in (each.input, each.answer, each.references[0])]
        lines.append((each.task.name, each.task.category, each.task.split, *shown, "yes" if each.right else "no"))
    return lines


def on_one_line(text: str, length: int) -> str:
    """Returns a text on one line, cut in its middle where it is longer than `length`."""
    text = " ".join(text.split())
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[: length - 3 - half]}...{text[len(text) - half :]}"

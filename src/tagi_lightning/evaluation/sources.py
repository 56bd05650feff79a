"""Where a system's adapters come from: the task's own, none, another's, a mean, or a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.evaluation.controls import Controls
from tagi_lightning.evaluation.mean_adapter import MeanLora
from tagi_lightning.lora import LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.prefix import PrefixWeights

Adapt = Callable[[Tokens], TaskAdapter]
"""Turns instructions [T, I] into adapters."""


@dataclass(frozen=True)
class AdapterSource:
    """What gives the T tasks of a batch their adapters.

    Attributes:
        make: Returns them, given what is computed once for all tasks, what turns instructions into adapters, and the
            batch.
        generates: Whether the hypernetwork takes part.
        replaces_adapter: Whether fusion and memory are the task's own and LoRA and prefix are not.
        uses_teachers: Whether teachers take part.
        reads_training_tasks: Whether training tasks take part beside the weights.
        once: What is computed once for all tasks, which no count of operations and no time includes; empty for nothing.
        facts: Returns what is worth knowing about that, for the metrics.
    """

    make: Callable[[Controls, Adapt, TaskBatch], TaskAdapter]
    generates: bool = False
    replaces_adapter: bool = False
    uses_teachers: bool = False
    reads_training_tasks: bool = False
    once: str = ""
    facts: Callable[[Controls], dict[str, Any]] = lambda controls: {}


def _nothing(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Leaves the backbone as it is."""
    return TaskAdapter()


def _generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns what the batch's instructions give."""
    return adapt(controls.model.conditions(batch))


def _lora_alone(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the LoRA of what the batch's instructions give, which is what PEFT holds of it."""
    return TaskAdapter(_generated(controls, adapt, batch).lora)


def _other_generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns another task's LoRA with fusion and memory of the right instruction, which isolates the hypernetwork."""
    wrong = adapt(controls.instructions.wrong(batch.tasks).to(batch.task_index.device))
    return _in_place(controls.model, batch, wrong.lora, wrong.prefix)


def _mean_generated(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the mean LoRA of the training instructions with fusion and memory of the right instruction."""
    mean = controls.mean_generated
    lora = _repeat(mean.lora.lora, batch) if mean.lora is not None else None
    prefix = mean.prefix.map(partial(_expand, batch=batch)) if mean.prefix is not None else None
    return _in_place(controls.model, batch, lora, prefix)


def _taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the teachers of the tasks' own categories."""
    return TaskAdapter(controls.teachers(batch.category))


def _mean_taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the mean of all teachers."""
    return TaskAdapter(_repeat(controls.mean_taught.lora, batch))


def _nearest_taught(controls: Controls, adapt: Adapt, batch: TaskBatch) -> TaskAdapter:
    """Returns the teacher of the most similar training instruction."""
    rows = [controls.nearest[task].category for task in batch.tasks]
    return TaskAdapter(controls.teachers(torch.tensor(rows, device=batch.category.device)))


def _in_place(
    model: TagiModel, batch: TaskBatch, lora: LoraWeights | None, prefix: PrefixWeights | None
) -> TaskAdapter:
    """Returns fusion and memory of the batch's instructions under a LoRA and a prefix that are not theirs.

    They are computed anew: keys, values and states that were prepared before hold the instruction's own LoRA.
    """
    with torch.no_grad(), model.backbone.lock:
        return model.backbone.prepare(model.conditioned(model.encode_instructions(batch.instruction), lora, prefix))


def _expand(tensor: Tensor, batch: TaskBatch) -> Tensor:
    """Returns one task's tensor [1, ...] as that of all T tasks of a batch, without copies."""
    return tensor.to(batch.task_index.device).expand(len(batch.instruction), *tensor.shape[1:])


def _repeat(lora: LoraWeights, batch: TaskBatch) -> LoraWeights:
    a, b = ({site: _expand(factor, batch) for site, factor in part.items()} for part in (lora.a, lora.b))
    return replace(lora, a=a, b=b)


def _mean_facts(mean: MeanLora | None) -> dict[str, Any]:
    if mean is None:
        return {}
    return {"mean_of": mean.adapters, "kept": round(mean.kept, 4), "agreement": round(mean.agreement, 4)}


def _nearest_facts(controls: Controls) -> dict[str, Any]:
    return {"nearest": {task: [found.task, round(found.cosine, 4)] for task, found in controls.nearest.items()}}


NOTHING = AdapterSource(_nothing)
GENERATED = AdapterSource(_generated, generates=True)
LORA_ALONE = AdapterSource(_lora_alone, generates=True)
OTHER_GENERATED = AdapterSource(_other_generated, generates=True, replaces_adapter=True)
MEAN_GENERATED = AdapterSource(
    _mean_generated,
    generates=True,
    replaces_adapter=True,
    reads_training_tasks=True,
    once="the mean of all training instructions' adapters",
    facts=lambda controls: _mean_facts(controls.mean_generated.lora),
)
TAUGHT = AdapterSource(_taught, uses_teachers=True)
MEAN_TAUGHT = AdapterSource(
    _mean_taught,
    uses_teachers=True,
    once="the mean of the teachers",
    facts=lambda controls: _mean_facts(controls.mean_taught),
)
NEAREST_TAUGHT = AdapterSource(
    _nearest_taught,
    uses_teachers=True,
    reads_training_tasks=True,
    once="the search for the most similar training instruction",
    facts=_nearest_facts,
)

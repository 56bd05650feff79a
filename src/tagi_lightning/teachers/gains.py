"""What each teacher gains over the bare backbone on examples that training never showed it.

Shapes: B examples, K adapters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import Backbone
from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.data.epochs import Batch
from tagi_lightning.lora import LoraBank
from tagi_lightning.losses import prediction_loss
from tagi_lightning.markdown import aligned_table
from tagi_lightning.teachers.teaching import teacher_losses


@dataclass(frozen=True)
class TeacherGain:
    """One teacher beside the bare backbone, both reading (a;b): mean loss per example, a mean over target tokens.

    Attributes:
        category: What was taught.
        instances: Number of held-out instances.
        backbone: Loss of the bare backbone; None without instances.
        teacher: Loss of the teacher; None without instances.
        gain: The first minus the second; None without instances.
        error: Standard error of the gain over instances; None below two of them.
    """

    category: str
    instances: int
    backbone: float | None = None
    teacher: float | None = None
    gain: float | None = None
    error: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the gain is positive by more than its standard error."""
        return self.gain is not None and self.gain > (self.error or 0.0)


def balanced_batches(
    examples: Sequence[Batch], categories: Sequence[str | None], per_category: int, batch_size: int
) -> list[Batch]:
    """Returns batches of at most `per_category` examples of each category, as evenly over its tasks as can be.

    Args:
        examples: All examples, task by task.
        categories: Category of each task, in the order that indices refer to; None leaves the task out.
        per_category: Examples of a category at most.
        batch_size: Examples in a batch at most.
    """
    indices = [index for batch in examples for index in batch]
    seen: Counter[str] = Counter()
    kept = set()
    for index in sorted(indices, key=lambda index: (index.instance, index.task)):
        category = categories[index.task]
        if category is not None and seen[category] < per_category:
            seen[category] += 1
            kept.add((index.task, index.instance))
    rows = [index for index in indices if (index.task, index.instance) in kept]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


@torch.no_grad()
def gain_sums(backbone: Backbone, bank: LoraBank, batch: TaskBatch) -> Tensor:
    """Returns sums over the batch's examples by teacher [K, 5]: 1, both losses, the gain and its square.

    Raises:
        ValueError: If the batch lacks the concatenated prompt.
    """
    if batch.prompt is None:
        raise ValueError("teachers read instruction and input concatenated: set data.with_prompt=true")
    logits = backbone(batch.prompt, batch.labels, TaskAdapter(), batch.task_index)
    bare = prediction_loss(logits, batch.labels).double()
    taught = teacher_losses(backbone, bank, batch.prompt, batch.labels, batch.category, batch.task_index).double()
    figures = torch.stack([torch.ones_like(bare), bare, taught, bare - taught, (bare - taught).square()], dim=1)
    sums = figures.new_zeros(len(bank.names), figures.shape[1])
    return sums.index_add_(0, batch.category[batch.task_index], figures)


def gains(names: Sequence[str], sums: Tensor) -> list[TeacherGain]:
    """Returns the teachers called `names`, the largest gain first and those without instances last.

    Args:
        names: Names of the teachers, K long.
        sums: What `gain_sums` gave, added up [K, 5].
    """
    rows = []
    for name, (count, backbone, teacher, gain, square) in zip(names, sums.tolist(), strict=True):
        if not count:
            rows.append(TeacherGain(name, 0))
            continue
        variance = max(square / count - (gain / count) ** 2, 0.0)
        error = (variance / (count - 1)) ** 0.5 if count > 1 else None
        rows.append(TeacherGain(name, int(count), backbone / count, teacher / count, gain / count, error))
    return sorted(rows, key=lambda row: (row.gain is None, -(row.gain or 0.0), row.category))


def table(rows: Sequence[TeacherGain]) -> str:
    """Returns the report as aligned Markdown."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [["category", "instances", "loss, backbone", "loss, teacher", "gain", "± std. error"]]
    for row in rows:
        figures = (row.backbone, row.teacher, row.gain, row.error)
        lines.append([row.category, str(row.instances), *map(cell, figures)])
    return aligned_table(lines)


def warning(rows: Sequence[TeacherGain]) -> str:
    """Returns what to say of teachers that gain nothing or could not be measured, by name; empty where all gain."""
    idle = [row.category for row in rows if row.instances and not row.shown]
    unmeasured = [row.category for row in rows if not row.instances]
    lines = []
    if idle:
        lines.append(
            f"WARNING: no gain over the bare backbone beyond its standard error: {', '.join(idle)}. Such teachers harm "
            "distillation: L_ins pulls the hypernetwork to weights, and L_kl to answers, that solve nothing. Train "
            "them longer or at another rate (--trainer.max_steps, --model.init_args.optimizer.lr), leave these "
            "categories out of every stage (--data.init_args.categories; P3: subset), or distill without teachers "
            "(--model.init_args.teachers=none)."
        )
    if unmeasured:
        names = "any teacher" if len(unmeasured) == len(rows) else ", ".join(unmeasured)
        lines.append(f"Training leaves no instances to measure {names} on; lower data.max_train_instances for some.")
    return "\n".join(lines)

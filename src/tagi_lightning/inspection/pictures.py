"""Everything there is to see of a model on a set of tasks, and what there is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerFast

from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.inspection.adapters import Written, collect
from tagi_lightning.inspection.answers import Sample, to_rows
from tagi_lightning.inspection.attention import attention_maps
from tagi_lightning.inspection.figures import distribution_figure, gate_figure, point_figure, score_figures
from tagi_lightning.inspection.maps import MOST_NAMES, attention_map, cosine_map, norm_map, taught_map
from tagi_lightning.inspection.tasks import InspectedTasks, evenly_spaced
from tagi_lightning.lora import LoraBank
from tagi_lightning.model import TagiModel

ATTENTION_EXAMPLES = 3
"""Inputs whose attention is shown."""


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: Name of its file without suffix, and its tag below `inspection/`.
        caption: What it shows.
        figure: The picture.
    """

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Inspection:
    """What was found of a model.

    Attributes:
        tasks: The tasks it was looked at with.
        written: What the hypernetwork writes for them.
        pictures: The pictures, in order.
        left_out: Pictures that do not apply, each with the reason.
    """

    tasks: InspectedTasks
    written: tuple[Written, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def inspect_model(
    model: TagiModel, tasks: InspectedTasks, tokenizer: PreTrainedTokenizerFast, bank: LoraBank | None = None
) -> Inspection:
    """Draws adapters, gates and attention; the model is not changed.

    Args:
        model: The model, in evaluation mode.
        tasks: The tasks to look at, at least one.
        tokenizer: Gives the texts of tokens.
        bank: The teachers, where there are any.
    """
    found = Inspection(tasks, tuple(collect(model, tasks, bank)))
    alike = why_alike(model, len(tasks))
    for written in found.written:
        found.pictures.extend(() if alike else comparing_pictures(tasks, written))
        found.pictures.extend(other_pictures(tasks, written))
    if alike:
        found.left_out["tasks beside each other, by their adapters"] = alike
    if all(written.taught is None for written in found.written):
        generated = any(written.kind == "lora" for written in found.written)
        found.left_out["generated adapters beside taught ones"] = (
            "there are no teachers" if generated else "no LoRA is generated"
        )
    if model.fusion is None:
        found.left_out["gates and attention of the encoder fusion"] = "this model has no fusion (tagi.fusion.enabled)"
        return found
    if gates := [float(gate) for gate in model.fusion.gates()]:
        caption = "How far the encoder fusion of each block is open; 0 is closed, as before training."
        found.pictures.append(Picture("fusion-gates", caption, gate_figure(gates)))
    else:
        found.left_out["gates of the encoder fusion"] = "post-norm fusion has none"
    found.pictures.extend(attention_pictures(model, tasks, tokenizer))
    return found


def why_alike(model: TagiModel, tasks: int) -> str:
    """Returns why tasks cannot be told apart by what is written for them; empty where they can."""
    if model.hypernetwork is None:
        return "this model has no hypernetwork (tagi.hypernetwork.enabled=false)"
    if not model.hypernetwork.reads_instruction:
        return "this model writes the same for all instructions (tagi.hypernetwork.generator=constant)"
    return "" if tasks > 1 else "there is one task alone"


def comparing_pictures(tasks: InspectedTasks, written: Written) -> Iterator[Picture]:
    """Yields the pictures of tasks beside each other."""
    what, part = told(written)
    yield Picture(
        f"{written.kind}-points",
        f"Each task's {what} as a point: of all planes, the one that keeps most of their distances.{part}",
        point_figure(tasks.tasks, written),
    )
    yield Picture(
        f"{written.kind}-cosines",
        f"Cosines between the {what}s of all pairs of tasks, ordered by category.{part}",
        cosine_map(tasks.tasks, written),
    )
    yield Picture(
        f"{written.kind}-distributions",
        f"Distributions over tasks and over pairs.{part}",
        distribution_figure(tasks.tasks, written),
    )


def other_pictures(tasks: InspectedTasks, written: Written) -> Iterator[Picture]:
    """Yields the pictures that one task is enough for: teachers and norms."""
    what, part = told(written)
    if written.taught is not None:
        own = "A dot marks the teacher of a task's own category." if len(tasks) <= MOST_NAMES else ""
        yield Picture(
            f"{written.kind}-teachers",
            f"Cosines between generated and taught updates.{part} {own}",
            taught_map(tasks.tasks, written),
        )
    yield Picture(
        f"{written.kind}-norms",
        f"Frobenius norm of the {what}s by stack and block, mean over the tasks.",
        norm_map(written),
    )


def told(written: Written) -> tuple[str, str]:
    """Returns what captions call that which is written, and by how much of it tasks are compared."""
    every = len(written.places)
    part = f" Compared over {written.compared} of {every} sites, drawn by chance." if written.compared < every else ""
    return "LoRA update" if written.kind == "lora" else "prefix", part


def attention_pictures(
    model: TagiModel, tasks: InspectedTasks, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Picture]:
    """Yields the attention of some tasks' first inputs to their instructions."""
    firsts = [
        (batch, batch.task_index.tolist().index(row)) for batch in tasks.batches for row in range(len(batch.tasks))
    ]
    for place, (batch, example) in enumerate(evenly_spaced(firsts, ATTENTION_EXAMPLES), start=1):
        [found] = attention_maps(model, batch, tokenizer, [example])
        caption = f"Attention of one input's tokens to the tokens of its instruction, mean over heads ({found.task})."
        yield Picture(f"fusion-attention-{place}", caption, attention_map(found))


def sample_pictures(samples: Sequence[Sample]) -> Iterator[Picture]:
    """Yields the scores of the categories, those of each split for themselves."""
    by_split: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_split[sample.task.split].append(sample)
    for split, members in by_split.items():
        yield from prediction_pictures(to_rows(members), split)


def prediction_pictures(rows: Sequence[Prediction], split: str) -> Iterator[Picture]:
    """Yields the scores of the categories of answered rows, in pages; nothing where there are none."""
    pages = score_figures(aggregate(rows)["by_category"]) if rows else []
    for number, figure in enumerate(pages, start=1):
        name = f"scores-{split}" + (f"-{number}" if len(pages) > 1 else "")
        page = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        yield Picture(name, f"Scores of {len(rows)} answers on {split} tasks by category{page}.", figure)

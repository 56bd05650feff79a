"""Pictures with a colour for each pair: cosines of adapters, norms by layer, attention by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tagi_lightning.inspection.adapters import Written
from tagi_lightning.inspection.answers import on_one_line
from tagi_lightning.inspection.attention import AttentionMap
from tagi_lightning.inspection.tasks import InspectedTask
from tagi_lightning.report.charts import WIDTH

MOST_NAMES = 40
"""Tasks that are named one by one; of more, their categories are."""
MOST_LINES = 30
"""Categories that lines part; of more, lines would hide what is between them."""
MOST_LABELS = 55
"""Labels that an axis has room for."""
MOST_FIGURES = 12
"""Columns of cells that have room for their values."""
MOST_BLOCKS, MOST_INPUT, MOST_INSTRUCTION = 3, 20, 40
"""Blocks, input tokens and instruction tokens that a picture of attention shows."""
NO_VALUE = "0.85"


def cosine_map(tasks: Sequence[InspectedTask], written: Written) -> Figure:
    """Returns the cosines between the updates of all pairs of tasks."""
    values = written.cosines.numpy().copy()
    np.fill_diagonal(values, np.nan)
    named = len(tasks) <= MOST_NAMES
    figure, axes = _map_figure(values, "cosine of the two updates", 4.4 if len(tasks) < 12 else 7.0)
    label_tasks(axes, tasks, numbered=True)
    if named:
        numbers = [str(place + 1) for place in range(len(tasks))]
        axes.set_xticks(range(len(tasks)), numbers, fontsize=7, rotation=90 if len(tasks) > 20 else 0)
    else:
        _label_categories(axes, tasks, on_x=True)
    axes.set_xlabel("task, in the same order" if named else "category of the task, in the same order", fontsize=9)
    if len(tasks) <= MOST_FIGURES:
        _write_values(axes, values)
    return figure


def taught_map(tasks: Sequence[InspectedTask], written: Written) -> Figure:
    """Returns the cosines between generated and taught updates; a dot marks the teacher of a task's own category."""
    taught = written.taught
    assert taught is not None
    values = taught.cosines.numpy()
    rows = 0.17 * len(tasks) if len(tasks) <= MOST_NAMES else 6.0
    figure, axes = _map_figure(values, "cosine of generated and taught update", 2.4 + rows)
    label_tasks(axes, tasks)
    step = -(-len(taught.names) // MOST_LABELS)
    places = range(0, len(taught.names), step)
    labels = [on_one_line(taught.names[place], 30) for place in places]
    axes.set_xticks(places, labels, fontsize=7, rotation=90)
    axes.set_xlabel("category that the teacher was taught", fontsize=9)
    if len(tasks) <= MOST_NAMES:
        own = [(taught.names.index(t.category), row) for row, t in enumerate(tasks) if t.category in taught.names]
        axes.plot([column for column, _ in own], [row for _, row in own], "o", color="tab:red", markersize=4,
                  markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    return figure


def norm_map(written: Written) -> Figure:
    """Returns the mean norm of the updates over the tasks, by kind of place and block."""
    kinds = list(dict.fromkeys(place.kind for place in written.places))
    blocks = max(place.block for place in written.places) + 1
    values = np.full((len(kinds), blocks), np.nan)
    for place, norm in zip(written.places, written.norms.mean(0).tolist(), strict=True):
        values[kinds.index(place.kind), place.block] = norm
    figure, axes = _map_figure(values, "mean norm over the tasks", 1.4 + 0.36 * len(kinds))
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.set_ylabel("stack and projection" if written.kind == "lora" else "stack", fontsize=9)
    step = -(-blocks // MOST_LABELS)
    axes.set_xticks(range(0, blocks, step), [str(block) for block in range(0, blocks, step)], fontsize=8)
    axes.set_xlabel("block", fontsize=9)
    if blocks <= MOST_FIGURES:
        _write_values(axes, values)
    return figure


def attention_map(found: AttentionMap) -> Figure:
    """Returns where the tokens of one input look in their instruction, a panel for each of some blocks."""
    count = len(found.weights)
    blocks = sorted({round(place * (count - 1) / max(1, MOST_BLOCKS - 1)) for place in range(MOST_BLOCKS)})
    shown = found.weights[blocks, :MOST_INPUT]
    # of a long instruction, the tokens that are looked at most
    columns = sorted(shown.mean((0, 1)).argsort(descending=True)[:MOST_INSTRUCTION].tolist())
    kept, rows = shown[..., columns], found.input[:MOST_INPUT]
    height = 1.0 + len(blocks) * (0.3 + 0.16 * len(rows)) + 0.6
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(blocks), 1, squeeze=False, sharex=True)[:, 0]
    for block, weights, axes in zip(blocks, kept, panels, strict=True):
        image = axes.imshow(weights.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=float(kept.max()))
        axes.set_yticks(range(len(rows)), [_token(text) for text in rows], fontsize=7)
        axes.set_ylabel(f"input, block {block}", fontsize=9)
    labels = [_token(found.instruction[column]) for column in columns]
    axes.set_xticks(range(len(columns)), labels, fontsize=7, rotation=90)
    share = (
        f"{len(columns)} of {len(found.instruction)} tokens, {100 * float(kept.sum(-1).mean()):.0f} % of the attention"
    )
    axes.set_xlabel(f"instruction ({share})" if len(columns) < len(found.instruction) else "instruction", fontsize=9)
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.01, aspect=40)
    bar.set_label("attention, mean over the heads", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(plain(on_one_line(found.task, 90)), fontsize=9)
    return figure


def label_tasks(axes: Any, tasks: Sequence[InspectedTask], numbered: bool = False) -> None:
    """Labels the vertical axis with the tasks' names, or where they are many, with their categories."""
    if len(tasks) > MOST_NAMES:
        _label_categories(axes, tasks)
        axes.set_ylabel(f"category of the task ({len(tasks)} tasks)", fontsize=9)
        return
    names = [plain(on_one_line(task.name, 36)) for task in tasks]
    names = [f"{name}  {place}" for place, name in enumerate(names, start=1)] if numbered else names
    axes.set_yticks(range(len(tasks)), names, fontsize=7)
    axes.set_ylabel("task", fontsize=9)


def _label_categories(axes: Any, tasks: Sequence[InspectedTask], on_x: bool = False) -> None:
    """Labels the middle of each category's tasks; where there is no room for all, those of the largest."""
    runs, start, lines = [], 0, len({task.category for task in tasks}) <= MOST_LINES
    for category, members in groupby(tasks, key=lambda task: task.category):
        size = len(list(members))
        runs.append((size, start + (size - 1) / 2, category))
        start += size
        if lines and start < len(tasks):
            (axes.axvline if on_x else axes.axhline)(start - 0.5, color="white", linewidth=0.4)
    gap, labelled = len(tasks) / MOST_LABELS, list[tuple[float, str]]()
    for _, middle, category in sorted(runs, key=lambda run: (-run[0], run[1])):
        if all(abs(middle - other) >= gap for other, _ in labelled):
            labelled.append((middle, plain(on_one_line(category, 30))))
    middles, names = zip(*sorted(labelled), strict=True)
    if on_x:
        axes.set_xticks(middles, names, fontsize=7, rotation=90)
    else:
        axes.set_yticks(middles, names, fontsize=7)


def _map_figure(values: Any, title: str, height: float) -> tuple[Figure, Any]:
    """Returns a figure of coloured cells with its colour bar; cells without a value are grey."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(NO_VALUE)
    image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=40)
    bar.set_label(title, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure, axes


def _write_values(axes: Any, values: Any) -> None:
    """Writes each cell's value into it."""
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if values[row, column] < middle else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color=colour)


def plain(text: str) -> str:
    """Returns a text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _token(text: str) -> str:
    return plain(on_one_line(text, 14))

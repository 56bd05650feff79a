"""Pictures of points, distributions and bars; those with a colour for each pair are in `maps`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from tagi_lightning.inspection.adapters import Written
from tagi_lightning.inspection.answers import on_one_line
from tagi_lightning.inspection.maps import plain
from tagi_lightning.inspection.tasks import InspectedTask
from tagi_lightning.report.charts import WIDTH, finish_bars, new_figure

MARKERS = {"train": "o", "validation": "s", "test": "^"}
"""How points of each split look."""
COLOURS = [colormaps["tab20"](place) for place in range(20) if place not in (14, 15)]
"""All but the greys."""
MOST_COLOURS = len(COLOURS)
"""Categories with a colour of their own; the others are grey."""
MOST_NAMED_POINTS = 12
MOST_SCORED = 30
"""Categories on one page of scores."""
SCORES = (("rougeL", "ROUGE-L", "tab:blue"), ("exact_match", "exact match", "tab:orange"))
"""Bars of a category."""
UPDATE = {"lora": "LoRA update", "prefix": "prefix"}
"""What axes call what is written."""


def point_figure(tasks: Sequence[InspectedTask], written: Written) -> Figure:
    """Returns the tasks' adapters in the plane of their two largest principal axes."""
    points, shares = written.points()
    points = torch.cat([points, torch.zeros(len(points), 1)], 1)
    figure = Figure(figsize=(WIDTH, 6.0), layout="constrained")
    axes = figure.subplots()
    named = dict(Counter(task.category for task in tasks).most_common(MOST_COLOURS))
    colours = {category: COLOURS[place] for place, category in enumerate(sorted(named))}
    looks = [(task.category if task.category in colours else "", task.split) for task in tasks]
    for category, split in sorted(set(looks)):
        rows = [row for row, look in enumerate(looks) if look == (category, split)]
        axes.scatter(points[rows, 0], points[rows, 1], color=colours.get(category, "0.7"), marker=MARKERS[split], s=26,
                     edgecolors="black", linewidths=0.3, zorder=2 if category else 1)  # fmt: skip
    if len(tasks) <= MOST_NAMED_POINTS:
        middle = float(points[:, 0].max() + points[:, 0].min()) / 2
        for (x, y, *_), task in zip(points.tolist(), tasks, strict=True):
            side, align = (-5, "right") if x > middle else (5, "left")
            axes.annotate(plain(on_one_line(task.name, 30)), (x, y), fontsize=7, xytext=(side, 4), ha=align,
                          textcoords="offset points")  # fmt: skip
    for name, place in (("x", 0), ("y", 1)):
        share = f" ({100 * float(shares[place]):.0f} % of the variance)" if place < len(shares) else ""
        getattr(axes, f"set_{name}label")(
            f"principal axis {place + 1} of the {UPDATE[written.kind]}s{share}", fontsize=9
        )
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    _legend(figure, colours, len({task.category for task in tasks}) - len(colours), [task.split for task in tasks])
    return figure


def _legend(figure: Figure, colours: Mapping[str, Any], others: int, splits: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: Any, label: str) -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="", label=label, markersize=5)

    entries = [mark(MARKERS[split], "black", split) for split in MARKERS if split in splits]
    entries += [mark("o", colour, plain(on_one_line(category, 34))) for category, colour in colours.items()]
    entries += [mark("o", "0.7", f"{others} smaller categories")] if others else []
    figure.legend(handles=entries, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def distribution_figure(tasks: Sequence[InspectedTask], written: Written) -> Figure:
    """Returns how norms and cosines are distributed, a panel each."""
    panels = distributions(tasks, written)
    figure = Figure(figsize=(WIDTH, 2.5 * len(panels)), layout="constrained")
    for (title, groups), axes in zip(panels.items(), figure.subplots(len(panels), 1, squeeze=False)[:, 0], strict=True):
        everything = torch.cat(list(groups.values()))
        low, high = float(everything.min()), float(everything.max())
        width = max(high - low, 1e-6 * max(abs(high), 1.0))
        edges = torch.linspace(low, low + width, 1 + min(30, max(8, len(everything) // 4))).tolist()
        for colour, (name, values) in zip(("tab:blue", "tab:orange", "tab:green"), groups.items(), strict=False):
            # shares, since groups differ in size by orders of magnitude
            weights = torch.full_like(values, 100 / len(values)).tolist()
            label = f"{name} ({len(values)})"
            axes.hist(values.tolist(), edges, weights=weights, color=colour, alpha=0.55, label=label)
        axes.set_xlabel(title, fontsize=9)
        axes.set_ylabel("% of its group", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(y=0.35)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")
    return figure


def distributions(tasks: Sequence[InspectedTask], written: Written) -> dict[str, dict[str, Tensor]]:
    """Returns norms by split and cosines within and across categories, by title and group; no group is empty."""
    splits, categories = [task.split for task in tasks], [task.category for task in tasks]
    found = {
        f"norm of a task's {UPDATE[written.kind]}": {
            split: written.norm[[place for place, each in enumerate(splits) if each == split]] for split in MARKERS
        }
    }
    same = torch.tensor([[left == right for right in categories] for left in categories])
    pairs = torch.ones_like(same).triu(1)
    cosines = written.cosines.float()
    found["cosine between two tasks"] = {
        "same category": cosines[same & pairs],
        "different categories": cosines[~same & pairs],
    }
    if written.taught is not None:
        own = torch.tensor([[category == name for name in written.taught.names] for category in categories])
        known = own.any(1, keepdim=True)
        found["cosine of generated and taught update"] = {
            "own category's teacher": written.taught.cosines[own].float(),
            "other teachers": written.taught.cosines[~own & known].float(),
        }
    kept = {title: {name: each for name, each in groups.items() if len(each)} for title, groups in found.items()}
    return {title: groups for title, groups in kept.items() if groups}


def gate_figure(gates: Sequence[float]) -> Figure:
    """Returns how far the fusion of each encoder block is open."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(len(gates)), gates, color="tab:blue", width=0.7)
    if len(gates) <= 24:
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
        axes.set_xticks(range(len(gates)))
        axes.margins(y=0.15)
    axes.axhline(0, color="black", linewidth=0.8)
    half = max(len(gates), 6) / 2 + 0.1
    axes.set_xlim((len(gates) - 1) / 2 - half, (len(gates) - 1) / 2 + half)
    axes.set_xlabel("encoder block", fontsize=9)
    axes.set_ylabel("fusion gate, tanh(gate)", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure


def score_figures(scores: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """Returns pages of bars: ROUGE-L and exact match of each category."""
    pages = -(-len(scores) // MOST_SCORED)
    size = -(-len(scores) // pages)
    return [_score_page(dict(list(scores.items())[start : start + size])) for start in range(0, len(scores), size)]


def _score_page(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    figure, axes = new_figure(1.2 + 0.3 * len(scores))
    for place, (name, title, colour) in enumerate(SCORES):
        heights = [row + 0.36 * (place - 0.5) for row in range(len(scores))]
        axes.barh(heights, [row[name] for row in scores.values()], height=0.36, color=colour, label=title)
    labels = [plain(on_one_line(f"{category} ({row['n']:.0f})", 40)) for category, row in scores.items()]
    finish_bars(axes, labels, "category (answers)", "mean over the answers, 0 to 100")
    axes.set_xlim(0, 100)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure

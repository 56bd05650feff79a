"""Charts of a column: scores, scores by category, training curves. PNG, 1200 pixels wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from tagi_lightning.report.columns import Cell, Column, mean_and_std
from tagi_lightning.report.curves import CURVES, Curve, mean_curves
from tagi_lightning.report.tables import METRIC_TITLES, Table

DPI, WIDTH = 150, 8.0
BAR = 0.12
"""Height of a grouped bar in inches: 18 pixels."""
MOST_ROWS, MOST_BARS = 8, 64
"""Rows, the reference among them, and bars on one page."""
LABEL = 34
"""Characters of a row's title in a line."""
REFERENCE = "black"


def draw_charts(column: Column, table: Table, folder: Path, prefix: str) -> list[tuple[str, str]]:
    """Draws every chart of a column.

    Args:
        column: What is drawn.
        table: Its metric and reference.
        folder: Where the files go.
        prefix: Start of their names.

    Returns:
        Name of each file and what it shows.
    """
    drawn = [*score_chart(column, table), *category_charts(column, table), *curve_charts(column, table)]
    names = []
    for kind, caption, figure in drawn:
        name = f"{prefix}-{kind}.png"
        # without the version of the library, so that equal input gives equal files
        figure.savefig(folder / name, dpi=DPI, metadata={"Software": None})
        names.append((name, caption))
    return names


def score_chart(column: Column, table: Table) -> list[tuple[str, str, Figure]]:
    """Returns one bar a row, with the standard deviation over seeds."""
    title = METRIC_TITLES[table.metric]
    figure, axes = new_figure(0.9 + 0.26 * len(column.cells))
    labels = [wrapped(cell.row.title, 60) for cell in column.cells]
    scores = [mean_and_std(cell.values(table.metric)) for cell in column.cells]
    places = range(len(scores))
    colours = [REFERENCE if cell.row.title == table.reference else "tab:blue" for cell in column.cells]
    # a deviation of one seed is not zero, it is unknown
    several = any(deviation is not None for _, deviation in scores)
    deviations = [deviation or 0.0 for _, deviation in scores] if several else None
    axes.barh(places, [mean for mean, _ in scores], xerr=deviations, color=colours, height=0.7,
              error_kw={"ecolor": "tab:orange", "capsize": 2})  # fmt: skip
    axis = f"{title}, mean and standard deviation over seeds" if several else f"{title}, one seed a row"
    finish_bars(axes, labels, "system", axis)
    return [("scores", f"{title} of every row", figure)]


def category_charts(column: Column, table: Table) -> Iterable[tuple[str, str, Figure]]:
    """Yields pages of bars grouped by category: the reference and up to seven more rows, as many categories as fit."""
    scores = {cell.row.title: cell.by_group("by_category", table.metric) for cell in column.cells}
    scores = {title: by_category for title, by_category in scores.items() if by_category}
    categories = sorted({name for by_category in scores.values() for name in by_category})
    if not categories:
        return
    groups = with_reference(list(scores), table.reference)
    most = max(1, MOST_BARS // max(len(group) for group in groups))
    count = -(-len(categories) // most)
    size = -(-len(categories) // count)
    pages = [(rows, categories[start : start + size]) for rows in groups for start in range(0, len(categories), size)]
    for number, (rows, shown) in enumerate(pages, 1):
        part = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        figure = category_page({row: scores[row] for row in rows}, shown, table)
        yield f"categories-{number}", f"{METRIC_TITLES[table.metric]} by category{part}", figure


def category_page(scores: Mapping[str, Mapping[str, float]], categories: Sequence[str], table: Table) -> Figure:
    """Returns one page of grouped bars."""
    legend = 0.3 * -(-len(scores) // 3)
    height = BAR * (len(scores) + 1.5) * len(categories)
    figure, axes = new_figure(1.0 + legend + max(height, 0.3 * len(categories)))
    thickness = 1 / (len(scores) + 1.5)
    for number, (title, found) in enumerate(scores.items()):
        places = [place + thickness * (number - (len(scores) - 1) / 2) for place in range(len(categories))]
        values = [found.get(name, 0.0) for name in categories]
        axes.barh(places, values, height=thickness, color=colour(number, title, table), label=wrapped(title))
    finish_bars(axes, [wrapped(name) for name in categories], "category", METRIC_TITLES[table.metric])
    add_legend(figure)
    return figure


def curve_charts(column: Column, table: Table) -> Iterable[tuple[str, str, Figure]]:
    """Yields pages of training loss and validation score: the reference and up to seven more rows each."""
    # rows evaluated on the same weights, as controls are, have one curve; the reference lends it its name
    ordered = sorted(column.cells, key=lambda cell: cell.row.title != table.reference)
    first: dict[tuple[Path, ...], Cell] = {}
    for cell in ordered:
        first.setdefault(tuple(t.folder for result in cell.results.values() for t in result.trainings[-1:]), cell)
    found = {cell.row.title: curves for cell in first.values() if (curves := mean_curves(cell))}
    # a lone point is no curve
    tags = [tag for tag in CURVES if any(len(curves.get(tag, ())) > 1 for curves in found.values())]
    groups = with_reference(list(found), table.reference) if tags else []
    for number, rows in enumerate(groups, 1):
        part = f", page {number} of {len(groups)}" if len(groups) > 1 else ""
        yield f"curves-{number}", f"training curves{part}", curve_page({row: found[row] for row in rows}, tags, table)


def curve_page(curves: Mapping[str, Mapping[str, Curve]], tags: Sequence[str], table: Table) -> Figure:
    """Returns one page of curves, a panel for each scalar."""
    figure = Figure(figsize=(WIDTH, 2.9 * len(tags) + 0.3 * -(-len(curves) // 3)), layout="constrained")
    panels = figure.subplots(len(tags), 1, squeeze=False, sharex=True)[:, 0]
    for tag, axes in zip(tags, panels, strict=True):
        for number, (title, found) in enumerate(curves.items()):
            steps, values = zip(*found[tag], strict=True) if tag in found else ((), ())
            mark = "o" if len(steps) < 25 else None
            axes.plot(steps, values, color=colour(number, title, table), marker=mark, markersize=3, linewidth=1.3,
                      label=wrapped(title))  # fmt: skip
        axes.set_xlabel("step of the last stage", fontsize=9)
        axes.set_ylabel(CURVES[tag], fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    add_legend(figure, panels[0])
    return figure


def with_reference(titles: Sequence[str], reference: str | None) -> list[list[str]]:
    """Splits rows into pages that each begin with the reference."""
    first = [title for title in titles if title == reference]
    others = [title for title in titles if title != reference]
    if not others:
        return [first] if first else []
    size = MOST_ROWS - len(first)
    # pages of even length
    size = -(-len(others) // -(-len(others) // size))
    return [first + others[start : start + size] for start in range(0, len(others), size)]


def colour(number: int, title: str, table: Table) -> Any:
    """Returns a row's colour on its page; the reference's is the same on all of them."""
    return REFERENCE if title == table.reference else colormaps["tab10"](number)


def new_figure(height: float) -> tuple[Figure, Any]:
    """Returns a figure of one panel."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def finish_bars(axes: Any, labels: Sequence[str], what: str, title: str) -> None:
    """Labels the axes of horizontal bars, the first on top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylabel(what, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, axes: Any = None) -> None:
    """Puts the rows' colours below the panels."""
    handles, labels = (axes or figure.axes[0]).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def wrapped(text: str, width: int = LABEL) -> str:
    """Returns a label broken into lines."""
    return "\n".join(textwrap.wrap(text, width))

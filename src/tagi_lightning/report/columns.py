"""Results put into columns: what answered the same instances in the same way, on the same backbone, on equal terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tagi_lightning.options import is_execution
from tagi_lightning.report.results import LeftOut, Result
from tagi_lightning.report.tables import Row, Table

PLACES = (
    "data_folder", "tokenizer", "seed_everything", "trainer.", "model.init_args.systems", "model.init_args.flops",
    "data.init_args.folder", "data.init_args.pool_batches", "data.init_args.eval_batch_size",
    "data.init_args.allow_missing",
)  # fmt: skip
"""What else may differ within a row; steps, batches and data are compared as they were, not as asked."""

DECODING = "model.init_args.generation."


@dataclass(frozen=True)
class Cell:
    """One row's results in one column, a seed each.

    Attributes:
        row: The row.
        results: What was measured, by seed.
        other_budget: Whether it saw another number of examples than the reference.
    """

    row: Row
    results: Mapping[int, Result]
    other_budget: bool = False

    @property
    def first(self) -> Result:
        """The result of the lowest seed."""
        return self.results[self.seeds[0]]

    @property
    def seeds(self) -> list[int]:
        """The seeds in order."""
        return sorted(self.results)

    def values(self, key: str) -> list[float]:
        """Returns a figure of metrics.json, overall or of the run, for each seed that has it."""
        found = [(self.results[seed].metrics["overall"] | self.results[seed].metrics).get(key) for seed in self.seeds]
        return [float(value) for value in found if value is not None]

    def by_task(self, metric: str, seeds: Sequence[int]) -> dict[str, float]:
        """Returns each task's score averaged over `seeds`."""
        return self.by_group("by_task", metric, seeds)

    def by_group(self, groups: str, metric: str, seeds: Sequence[int] | None = None) -> dict[str, float]:
        """Returns the scores under by_task or by_category, averaged over seeds."""
        scores: dict[str, list[float]] = defaultdict(list)
        for seed in self.seeds if seeds is None else seeds:
            for name, row in self.results[seed].metrics.get(groups, {}).items():
                if metric in row:
                    scores[name].append(row[metric])
        return {name: fmean(values) for name, values in scores.items()}


@dataclass(frozen=True)
class Column:
    """Results that may be compared.

    Attributes:
        backbone: The language model.
        setting: What instructions show.
        data: Digest of the answered instances.
        cells: The rows that have results here, in the table's order.
    """

    backbone: str
    setting: str
    data: str
    cells: tuple[Cell, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What columns of other instances may share."""
        return self.backbone, self.setting

    @property
    def title(self) -> str:
        """Heading that tells what the column is of."""
        found = self.cells[0].first.metrics
        kind = "held-out instances, drawn by each seed," if self.data.startswith("held out") else "instances"
        return f"{self.backbone}, {self.setting}, {found['overall']['n']} {kind} of {len(found['by_task'])} tasks"

    def cell(self, title: str | None) -> Cell | None:
        """Returns the cell of the row called `title`, None where it has no result."""
        return next((cell for cell in self.cells if cell.row.title == title), None)


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation; None for the latter where there is one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def build_columns(
    results: Sequence[Result], table: Table, allow_budgets: bool = False
) -> tuple[list[Column], list[LeftOut]]:
    """Puts results into columns, one for each backbone, setting, set of instances and way of decoding.

    Args:
        results: What was found.
        table: The rows.
        allow_budgets: Keep rows that saw another number of examples than the reference, marked.

    Returns:
        The columns, and the results that may not stand in theirs, with why.
    """
    left_out: list[LeftOut] = []
    names = backbone_names(results)
    places: dict[tuple[str, ...], dict[Row, dict[int, list[Result]]]] = {}
    for result in results:
        fitting = [row for row in table.rows if row.holds(result)]
        if not fitting or (table.settings and result.setting not in table.settings):
            left_out.append(LeftOut(str(result.folder), "of no row or setting of this table"))
        elif table.metric not in result.metrics["overall"]:
            left_out.append(LeftOut(str(result.folder), f"its answers have no {table.metric}"))
        else:
            decoding = str(sorted((k, str(v)) for k, v in result.config.items() if k.startswith(DECODING)))
            rows = places.setdefault((names[result.backbone], result.setting, result.data, decoding), {})
            for row in fitting:
                rows.setdefault(row, {}).setdefault(result.seed, []).append(result)
    columns = []
    for (backbone, setting, data, _), rows in places.items():
        cells = [cell for row in table.rows if row in rows and (cell := one_cell(row, rows[row], left_out))]
        cells = same_backbone(cells, table.reference, left_out)
        cells = same_budget(cells, table.reference, allow_budgets or table.allow_budgets, left_out)
        if cells:
            columns.append(Column(backbone, setting, data, tuple(cells)))
    return columns, left_out


def backbone_names(results: Sequence[Result]) -> dict[str, str]:
    """Returns what each backbone is called: the first name under which the same weights, stored alike, were found."""
    names: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}
    for result in results:
        if digest := result.metrics.get("backbone_digest"):
            name = first.setdefault((digest, result.stored), names.get(result.backbone, result.backbone))
            names.setdefault(result.backbone, name)
    return {result.backbone: names.get(result.backbone, result.backbone) for result in results}


def one_cell(row: Row, by_seed: Mapping[int, list[Result]], left_out: list[LeftOut]) -> Cell | None:
    """Returns the cell of results that differ in nothing but their seed, None where none is left."""
    kept: dict[int, Result] = {}
    for seed, results in sorted(by_seed.items()):
        first, *others = results
        found = {str(other.folder): differences(first, other) for other in others}
        if any(found.values()):
            for result in results:
                told = "; ".join(line for lines in found.values() for line in lines[:3])
                reason = f"seed {seed} of {row.title!r} is there {len(results)} times with different configurations"
                left_out.append(LeftOut(str(result.folder), f"{reason}: {told}"))
            continue
        for again in others:
            left_out.append(LeftOut(str(again.folder), f"seed {seed} again, as in {first.folder}: counted once"))
        standard = next(iter(kept.values()), first)
        if differing := differences(standard, first):
            reason = f"configured otherwise than {standard.folder}, seed {standard.seed} of the same row"
            left_out.append(LeftOut(str(first.folder), f"{reason}: {'; '.join(differing[:3])}"))
            continue
        kept[seed] = first
    return Cell(row, kept) if kept else None


def differences(first: Result, second: Result) -> list[str]:
    """Lists the options of two results, and of the training behind them, that differ in more than place and speed."""
    found = []
    # which teachers an evaluation was given counts where its system uses them
    left = set() if "teachers" in first.metrics else {"model.init_args.teachers"}
    evaluated = [{key: config[key] for key in config.keys() - left} for config in (first.config, second.config)]
    pairs: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("evaluate", evaluated[0], evaluated[1])]
    stages = {training.stage: training for training in second.trainings}
    for training in first.trainings:
        if other := stages.get(training.stage):
            pairs.append((training.stage, training.config, other.config))
            if training.examples != other.examples:
                found.append(f"{training.stage} saw {training.examples} examples there, {other.examples} here")
    if [t.stage for t in first.trainings] != [t.stage for t in second.trainings]:
        names = [", ".join(t.stage for t in result.trainings) or "none" for result in (first, second)]
        found.append(f"trained stages {names[0]} there, {names[1]} here")
    for stage, one, two in pairs:
        # an option that one of them did not have yet is no difference
        for key in sorted(one.keys() & two.keys()):
            if is_execution(key) or key.startswith(PLACES):
                continue
            if place_free(one[key]) != place_free(two[key]):
                found.append(f"{stage} {key}: {one[key]!r} there, {two[key]!r} here")
    return found


def place_free(value: Any) -> Any:
    """Returns an option's value; of a model in the run's folder, whose name may hold the seed, the stage alone."""
    return f"RUN: {Path(value).parent.name}" if isinstance(value, str) and value.startswith("RUN/") else value


def same_backbone(cells: Sequence[Cell], reference: str | None, left_out: list[LeftOut]) -> list[Cell]:
    """Keeps the results whose backbone is the reference's of the same seed; without a reference, the first row's."""
    ordered = sorted(cells, key=lambda cell: cell.row.title != reference)
    standard: dict[int, Result] = {}
    for cell in ordered:
        for seed, result in cell.results.items():
            if result.metrics.get("backbone_digest"):
                standard.setdefault(seed, result)
    kept = []
    for cell in cells:
        results = {}
        for seed, result in cell.results.items():
            digest, model = result.metrics.get("backbone_digest"), standard.get(seed)
            if digest is None or model is None or digest == model.metrics["backbone_digest"]:
                results[seed] = result
                continue
            reason = f"backbone {digest[:12]}, but {model.metrics['backbone_digest'][:12]} in {model.folder}"
            left_out.append(LeftOut(str(result.folder), reason))
        if results:
            kept.append(Cell(cell.row, results))
    return kept


def same_budget(cells: Sequence[Cell], reference: str | None, allow: bool, left_out: list[LeftOut]) -> list[Cell]:
    """Keeps, or marks, the trained rows that saw another number of examples in their last stage than the reference."""
    ordered = sorted(cells, key=lambda cell: cell.row.title != reference)
    seen = next((cell.first.examples for cell in ordered if cell.first.examples is not None), None)
    kept = []
    for cell in cells:
        examples = cell.first.examples
        if examples is None or examples == seen:
            kept.append(cell)
        elif allow:
            kept.append(Cell(cell.row, cell.results, other_budget=True))
        else:
            reason = f"saw {examples} examples, the reference {seen}; --allow_budgets true keeps such rows, marked"
            left_out += [LeftOut(str(result.folder), reason) for result in cell.results.values()]
    return kept

"""P3: one task for each pair of data set and prompt template of T0's lists."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tagi_lightning.data.p3.examples import Examples, ModelInput, Settings, TemplateTask
from tagi_lightning.data.p3.lists import LISTS, P3Dataset, test_datasets, train_datasets
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.rows import Rows, open_rows
from tagi_lightning.data.p3.templates import TemplateSource, read_templates
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.splits import ValSplit, check_counts, split_validation
from tagi_lightning.data.task import Task, TaskSplits

TEST_SPLIT = "validation"
"""Split that test tasks are evaluated on, as T0 does: the labels of the test splits are not public."""

ADVICE = (
    "Give the data sets' rows as FOLDER/<data set>/{train,validation}.jsonl (or .parquet, or arrow folders) and "
    "promptsource's folder of templates."
)
WITHOUT_ABSENT = " --data.allow_missing=true goes on without what is absent."


def read_p3(
    folder: Path,
    templates: Path,
    *,
    subset: int | Sequence[str] | None = None,
    model_input: ModelInput = "fields",
    with_prompt: bool = True,
    shots: int = 0,
    allow_missing: bool = False,
    seed: int = 0,
    max_train_instances: int | None = 1000,
    max_test_instances: int | None = None,
    held_out_instances: int = 0,
    val_split: ValSplit = "none",
    val_share: float = 0.05,
    report: DataReport | None = None,
) -> TaskSplits:
    """Reads T0's training sets and the eleven test tasks, or those of FOLDER/lists.yaml, one task a template.

    Args:
        folder: Holds `<data set>/{train,validation}` with raw rows, or `<configuration>/{train,validation}` with
            rows rendered by promptsource, named as in Hugging Face's bigscience/P3.
        templates: promptsource's folder of templates, `<data set>[/<subset>]/templates.yaml`.
        subset: 5, 10, 20 or 36 for the paper's first so many training sets, or their names; None takes all.
        model_input: "fields" for what the row fills into the prompt, "prompt" for the complete prompt.
        with_prompt: Keep the complete prompt of every instance, for teachers and concatenated baselines.
        shots: Demonstrations drawn for each task (16 in the paper): of a test task from its data set's training rows
            or, where there are none, from rows that are then not evaluated; of a training task, `POOL` times as
            many, from rows that are no instances of it.
        allow_missing: Leave out data sets and templates that are absent or cannot be used, and note them, instead
            of stopping.
        seed: Seed of the permutation of training rows, of demonstrations, of `choice` and of the validation split.
        max_train_instances: Instances of a training task, the first usable rows of a permutation by (seed, task).
        max_test_instances: Instances of a test task, spread over the file, whose neighbours may be alike (the first
            sixteen of ANLI R3 have one answer); None takes all.
        held_out_instances: If positive, training tasks get that many instances *after* their training ones instead.
        val_split: What validation holds out of the training tasks; the test tasks are never touched.
        val_share: Share that validation holds out.
        report: Receives what was left out; give one to show its `summary()`.

    Raises:
        DataError: If anything is absent or cannot be used; one message names all of it.
        ValueError: If an option is out of its range.
    """
    check_counts(max_train_instances, max_test_instances, held_out_instances)
    check_range({"shots": shots}, least=0)
    if held_out_instances and max_train_instances is None:
        raise ValueError("held_out_instances needs max_train_instances: without it all instances are for training")
    report = report or DataReport(str(folder))
    lists = folder / LISTS if (folder / LISTS).is_file() else None
    for path in (folder, templates):
        if not path.is_dir():
            report.error("missing folder", str(path))
    report.raise_if_errors(ADVICE)
    reader = _Reader(folder, templates, Settings(seed, model_input, with_prompt), allow_missing, report)
    train = list(reader.train_tasks(train_datasets(subset, lists), max_train_instances, held_out_instances, shots))
    test = list(reader.test_tasks(test_datasets(lists), max_test_instances, shots))
    if not train and not test:
        report.error("no usable task", str(folder))
    report.raise_if_errors(ADVICE + ("" if allow_missing else WITHOUT_ABSENT))
    if held_out_instances and val_split == "instances":
        val_split = "none"
    training, validation = split_validation(train, val_split, val_share, seed)
    return TaskSplits(training, validation, tuple(test))


def exchange_datasets(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Gives every task the instruction of a task of another data set, drawn by seed; instances stay.

    Raises:
        DataError: If all tasks are of one data set.
    """
    by_dataset: dict[str, list[Task]] = {}
    for task in tasks:
        by_dataset.setdefault(task.dataset, []).append(task)
    if len(by_dataset) < 2:
        raise DataError(f"another data set's instruction needs two data sets of test tasks, there is {len(by_dataset)}")
    names = sorted(by_dataset)
    random.Random(f"{seed}/exchange").shuffle(names)
    givers = dict(zip(names, [by_dataset[name] for name in (*names[1:], names[0])], strict=True))
    exchanged = []
    for task in tasks:
        giver = givers[task.dataset][by_dataset[task.dataset].index(task) % len(givers[task.dataset])]
        exchanged.append(replace(task, definitions=giver.definitions, demonstrations=giver.demonstrations))
    return exchanged


class _Reader:
    """Reads data sets one after another, so that the rows of one are held at a time."""

    def __init__(
        self, folder: Path, templates: Path, settings: Settings, allow_missing: bool, report: DataReport
    ) -> None:
        self.folder, self.templates, self.settings, self.report = folder, templates, settings, report
        self.absent = report.note if allow_missing else report.error

    def train_tasks(
        self, datasets: Sequence[P3Dataset], count: int | None, held_out: int, shots: int
    ) -> Iterator[Task]:
        """Yields training tasks: usable rows of ranks 0 to count - 1 of a permutation by (seed, task), or later ones.

        Args:
            datasets: The training sets.
            count: Instances of a task; None for all.
            held_out: If positive, that many instances *after* the training ones instead.
            shots: Demonstrations that a batch shows of a task.
        """
        first = count or 0 if held_out else 0
        wanted = None if count is None else first + (held_out or count)
        for made in self.template_tasks("training", datasets, "train"):
            try:
                found = made.collect("train", made.permutation("train", made.name), wanted, needs_gold=False)
            except TemplateProblem as error:
                self.absent(str(error), made.name)
                continue
            if not found:
                self.absent("training template without a usable row", made.name)
            elif len(found) <= first:
                self.report.note("task without held-out instances, left out", made.name)
            else:
                demonstrations = made.training_demonstrations(shots, found) if shots else ()
                yield made.task(list(found.values())[first:], demonstrations)

    def test_tasks(self, datasets: Sequence[P3Dataset], count: int | None, shots: int) -> Iterator[Task]:
        """Yields test tasks: all usable rows without those that became demonstrations, or `count` of them, spread."""
        for made in self.template_tasks("test", datasets, TEST_SPLIT, ("train",) if shots else ()):
            try:
                demonstrations, used = made.demonstrations(shots, TEST_SPLIT) if shots else ((), frozenset[int]())
                order = [place for place in range(made.splits[TEST_SPLIT].count) if place not in used]
                found = made.collect(TEST_SPLIT, spread_first(order, count), count, needs_gold=True)
            except TemplateProblem as error:
                self.absent(str(error), made.name)
                continue
            if found:
                yield made.task(list(found.values()), demonstrations)
            else:
                self.absent("test template without a usable row", made.name)

    def template_tasks(
        self, which: str, datasets: Sequence[P3Dataset], split: str, others: Sequence[str] = ()
    ) -> Iterator[TemplateTask]:
        """Yields the templates of `datasets` that can be used on their rows, and records what is absent.

        Args:
            which: What the report calls them, training or test.
            datasets: The data sets.
            split: Split whose rows are needed.
            others: Splits whose rows are taken, too, where there are any.
        """
        for dataset in datasets:
            path = self.templates / dataset.template_folder / "templates.yaml"
            if not path.is_file():
                self.absent(f"{which} set without templates.yaml ({len(datasets)} are listed)", dataset.name)
                continue
            rows = self.raw_rows(dataset, (split, *others))
            if not rows and not any(self.rendered_folder(dataset, name).is_dir() for name in dataset.templates):
                self.absent(f"{which} set without rows ({len(datasets)} are listed)", dataset.name)
                continue
            found = read_templates(path, self.report)
            for name in dataset.templates:
                if name not in found:
                    self.absent("template that is not in its templates.yaml", dataset.task_name(name))
                    continue
                try:
                    yield self.template_task(dataset, found[name], rows, split, others)
                except TemplateProblem as error:
                    self.absent(str(error), dataset.task_name(name))

    def template_task(
        self, dataset: P3Dataset, source: TemplateSource, rows: dict[str, Rows], split: str, others: Sequence[str]
    ) -> TemplateTask:
        """Returns a template with its examples.

        Raises:
            TemplateProblem: If it cannot be used on the rows of `split`.
        """
        template = PromptTemplate(source)
        folder = self.rendered_folder(dataset, source.name)
        splits: dict[str, Examples] = {}
        for each in (split, *others):
            name = f"{dataset.name}/{each}"
            if folder.is_dir():
                rendered = open_rows(folder, each, self.report)
                if rendered is not None:
                    splits[each] = Examples.rendered(name, rendered)
            elif each in rows:
                if not (missing := template.missing(rows[each].columns)):
                    splits[each] = Examples.raw(name, template, rows[each], self.settings.seed)
                elif each == split:
                    raise TemplateProblem(f"template whose {split} rows lack {', '.join(missing)}")
        if split not in splits:
            raise TemplateProblem(f"template without {split} rows")
        if folder.is_dir() and self.settings.model_input == "fields":
            self.report.error("rendered rows, which hold complete prompts only: set model_input=prompt", folder.name)
        return TemplateTask(dataset, template, splits, self.settings, self.report)

    def rendered_folder(self, dataset: P3Dataset, template: str) -> Path:
        """Returns where a template's rendered rows would be."""
        return self.folder / dataset.rendered_folder(template)

    def raw_rows(self, dataset: P3Dataset, splits: Sequence[str]) -> dict[str, Rows]:
        """Returns the rows of those of `splits` that there are."""
        folders = [path for name in dataset.row_folders if (path := self.folder / name).is_dir()]
        opened = {split: open_rows(folders[0], split, self.report) for split in splits} if folders else {}
        return {split: rows for split, rows in opened.items() if rows is not None}


def spread_first(order: Sequence[int], count: int | None) -> Sequence[int]:
    """Returns `order` with `count` of its positions, evenly spread over it, before the others."""
    if not count or count >= len(order):
        return order
    chosen = [order[place * len(order) // count] for place in range(count)]
    left = set(order) - set(chosen)
    return [*chosen, *(position for position in order if position in left)]

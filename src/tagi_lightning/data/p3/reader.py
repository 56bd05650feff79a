"""P3: one task for each pair of data set and prompt template of T0's lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tagi_lightning.data.p3.lists import P3Dataset, test_datasets, train_datasets
from tagi_lightning.data.p3.render import Filled, PromptTemplate
from tagi_lightning.data.p3.rendered import RenderedRows
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.rows import Rows, open_rows
from tagi_lightning.data.p3.sandbox import RowProblem
from tagi_lightning.data.p3.templates import read_templates
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sampler import random_generator
from tagi_lightning.data.splits import ValSplit, split_validation
from tagi_lightning.data.task import Demonstration, Instance, Task, TaskSplits

ModelInput = Literal["fields", "prompt"]
"""What a model reads as b: what the row fills into the prompt, or the complete filled-in prompt."""
TEST_SPLIT = "validation"
"""Split that test tasks are evaluated on, as T0 does: the labels of the test splits are not public."""
STOPPED_AFTER = 10
"""Rows in a row, from the first on, whose rendering hits a limit before a template is given up."""

ADVICE = (
    "Give the data set's rows as FOLDER/<data set>/{train,validation}.jsonl (or .parquet, or arrow folders) and "
    "promptsource's folder of templates; --data.allow_missing=true goes on without what is absent."
)


class Settings(NamedTuple):
    """What decides how rows become instances.

    Attributes:
        seed: Seed of permutations and of the `choice` filter.
        model_input: What an instance's input is.
        with_prompt: Whether instances keep their complete prompt.
    """

    seed: int
    model_input: ModelInput
    with_prompt: bool


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
    """Reads T0's training sets and the eleven test tasks, one task a template.

    Args:
        folder: Holds `<data set>/{train,validation}` with raw rows, or `<configuration>/{train,validation}` with
            rows rendered by promptsource, named as in Hugging Face's bigscience/P3.
        templates: promptsource's folder of templates, `<data set>[/<subset>]/templates.yaml`.
        subset: 5, 10, 20 or 36 for the paper's first so many training sets, or their names; None takes all.
        model_input: "fields" for what the row fills into the prompt, "prompt" for the complete prompt.
        with_prompt: Keep the complete prompt of every instance, for teachers and concatenated baselines.
        shots: Demonstrations drawn for each test task (16 in the paper), from training rows or, where there are
            none, from rows that are then not evaluated.
        allow_missing: Leave out data sets and templates that are absent or cannot be used, and note them, instead
            of stopping.
        seed: Seed of the permutation of training rows, of demonstrations, of `choice` and of the validation split.
        max_train_instances: Instances of a training task, the first usable rows of a permutation by (seed, task).
        max_test_instances: Instances of a test task, the first in the file; None takes all.
        held_out_instances: If positive, training tasks get that many instances *after* their training ones instead.
        val_split: What validation holds out of the training tasks; the test tasks are never touched.
        val_share: Share that validation holds out.
        report: Receives what was left out; give one to show its `summary()`.

    Raises:
        DataError: If anything is absent or cannot be used; one message names all of it.
    """
    report = report or DataReport(str(folder))
    for path in (folder, templates):
        if not path.is_dir():
            report.error("missing folder", str(path))
    report.raise_if_errors(ADVICE)
    reader = _Reader(folder, templates, Settings(seed, model_input, with_prompt), allow_missing, report)
    if held_out_instances and max_train_instances is None:
        raise ValueError("held_out_instances needs max_train_instances: without it all instances are for training")
    first, count = (max_train_instances or 0, held_out_instances) if held_out_instances else (0, max_train_instances)
    train = list(reader.tasks("training", train_datasets(subset), lambda each: reader.train_task(each, first, count)))
    test = list(reader.tasks("test", test_datasets(), lambda each: reader.test_task(each, shots, max_test_instances)))
    if not train and not test:
        report.error("no usable task", str(folder))
    report.raise_if_errors(ADVICE)
    if held_out_instances and val_split == "instances":
        val_split = "none"
    training, validation = split_validation(train, val_split, val_share, seed)
    return TaskSplits(
        tuple(task for task in training if task.instances),
        tuple(task for task in validation if task.instances),
        tuple(test),
    )


class _Source(NamedTuple):
    """One template over one data set."""

    dataset: P3Dataset
    template: PromptTemplate
    open: Callable[[str], _Examples | None]

    @property
    def task_name(self) -> str:
        return self.dataset.task_name(self.template.name)


class _Examples(NamedTuple):
    """The examples of one template in one split."""

    name: str
    count: int
    fill: Callable[[int], Filled]


class _Reader:
    """Reads data sets one after another, so that one data set's rows are held at a time."""

    def __init__(self, folder: Path, templates: Path, settings: Settings, allow_missing: bool, report: DataReport):
        self.folder, self.templates, self.settings, self.report = folder, templates, settings, report
        self.absent = report.note if allow_missing else report.error

    def tasks(
        self, which: str, datasets: Sequence[P3Dataset], make: Callable[[_Source], Task | None]
    ) -> Iterable[Task]:
        """Yields the tasks of `datasets`, and records what is absent."""
        for dataset in datasets:
            for source in self.sources(which, dataset, len(datasets)):
                try:
                    task = make(source)
                except TemplateProblem as error:
                    self.absent(str(error), source.task_name)
                    continue
                if task is not None:
                    yield task

    def sources(self, which: str, dataset: P3Dataset, listed: int) -> Iterable[_Source]:
        """Yields the templates of a data set that can be used on its rows."""
        path = self.templates / dataset.template_folder / "templates.yaml"
        if not path.is_file():
            self.absent(f"{which} set without templates.yaml ({listed} are listed)", dataset.name)
            return
        found = read_templates(path, self.report)
        rows = self.raw_rows(dataset)
        rendered = {name: self.folder / dataset.rendered_folder(name) for name in dataset.templates}
        split = "train" if which == "training" else TEST_SPLIT
        if not rows and not any(each.is_dir() for each in rendered.values()):
            self.absent(f"{which} set without rows ({listed} are listed)", dataset.name)
            return
        for name in dataset.templates:
            if name not in found:
                self.absent("template that is not in its templates.yaml", dataset.task_name(name))
                continue
            try:
                template = PromptTemplate(found[name])
                _ = template.instruction
            except TemplateProblem as error:
                self.absent(str(error), dataset.task_name(name))
                continue
            if rendered[name].is_dir():
                yield _Source(dataset, template, self._rendered(dataset, rendered[name]))
            elif split not in rows:
                self.absent(f"{which} template without {split} rows", dataset.task_name(name))
            elif missing := template.missing(rows[split].columns):
                self.absent(f"{which} template whose rows lack {', '.join(missing)}", dataset.task_name(name))
            else:
                yield _Source(dataset, template, self._raw(dataset, template, rows))

    def raw_rows(self, dataset: P3Dataset) -> dict[str, Rows]:
        """Returns the rows of each split there is."""
        folders = [path for name in dataset.row_folders if (path := self.folder / name).is_dir()]
        if not folders:
            return {}
        opened = {split: open_rows(folders[0], split, self.report) for split in ("train", TEST_SPLIT)}
        return {split: rows for split, rows in opened.items() if rows is not None}

    def _raw(
        self, dataset: P3Dataset, template: PromptTemplate, rows: dict[str, Rows]
    ) -> Callable[[str], _Examples | None]:
        def examples(split: str) -> _Examples | None:
            found = rows.get(split)
            if found is None:
                return None

            def fill(position: int) -> Filled:
                row = found[position]
                if row is None:
                    raise RowProblem("row that is no UTF-8 text or no JSON object")
                return template.fill(row, f"{dataset.name}/{split}/{position}", self.settings.seed)

            return _Examples(f"{dataset.name}/{split}", len(found), fill)

        return examples

    def _rendered(self, dataset: P3Dataset, folder: Path) -> Callable[[str], _Examples | None]:
        if self.settings.model_input == "fields":
            self.report.error("rendered rows hold complete prompts only: set model_input=prompt", folder.name)

        def examples(split: str) -> _Examples | None:
            rows = open_rows(folder, split, self.report)
            if rows is None:
                return None
            found = RenderedRows(rows)
            return _Examples(f"{dataset.name}/{split}", len(found), found.fill)

        return examples

    def train_task(self, source: _Source, first: int, count: int | None) -> Task | None:
        """Returns a training task with its usable rows of ranks `first` on, in a permutation by (seed, task)."""
        examples = source.open("train")
        if examples is None:
            self.absent("training template without train rows", source.task_name)
            return None
        order = random_generator(self.settings.seed, source.task_name).permutation(examples.count).tolist()
        wanted = None if count is None else first + count
        found = self._collect(source, examples, order, wanted, needs_gold=False)
        kept = tuple(found.values())[first:]
        if not kept and not first:
            self.absent("training template without a usable row", source.task_name)
            return None
        if not kept:
            self.report.note("task without held-out instances, left out", source.task_name)
        return self._task(source, kept)

    def test_task(self, source: _Source, shots: int, count: int | None) -> Task | None:
        """Returns a test task with its usable rows in their order, and its demonstrations."""
        examples = source.open(TEST_SPLIT)
        if examples is None:
            self.absent(f"test template without {TEST_SPLIT} rows", source.task_name)
            return None
        demonstrations, used = self.demonstrations(source, shots) if shots else ((), frozenset[int]())
        order = [position for position in range(examples.count) if position not in used]
        found = self._collect(source, examples, order, count, needs_gold=True)
        if not found:
            self.absent("test template without a usable row", source.task_name)
            return None
        return replace(self._task(source, tuple(found.values())), demonstrations=demonstrations)

    def demonstrations(self, source: _Source, shots: int) -> tuple[tuple[Demonstration, ...], frozenset[int]]:
        """Draws a test task's demonstrations by (seed, data set), of training rows where there are any.

        Args:
            source: The task.
            shots: How many to draw; fewer where there are not so many usable rows, which is noted.

        Returns:
            The demonstrations, and the positions of evaluation rows that were used for them.
        """
        training = source.open("train")
        examples = training or source.open(TEST_SPLIT)
        if examples is None:
            return (), frozenset()
        key = (self.settings.seed, source.dataset.name, "demonstrations")
        order = random_generator(*key).permutation(examples.count).tolist()
        found = self._collect(source, examples, order, shots, needs_gold=False, complete=True)
        if len(found) < shots:
            self.report.note(f"test task with fewer than {shots} demonstrations", f"{source.task_name} ({len(found)})")
        shown = tuple(Demonstration(each.prompt, each.references[0]) for each in found.values())
        return shown, frozenset() if training else frozenset(found)

    def _task(self, source: _Source, instances: tuple[Instance, ...]) -> Task:
        name = source.dataset.name
        definitions = (source.template.instruction,)
        return Task(source.task_name, name, definitions, (), instances, name, source.template.name)

    def _collect(
        self,
        source: _Source,
        examples: _Examples,
        order: Sequence[int],
        count: int | None,
        needs_gold: bool,
        complete: bool = False,
    ) -> dict[int, Instance]:
        """Returns the first `count` usable rows of `order` by position, and notes the others.

        A training template whose targets are never among its choices, such as "negative review.", is no template
        to rank: its instances go without choices. Otherwise a row whose target is not among them is skipped.
        """
        found: dict[int, Instance] = {}
        without_gold: dict[int, Instance] = {}
        skipped: Counter[str] = Counter()
        first: dict[str, int] = {}
        seen = 0
        for position in order:
            if count is not None and max(len(found), 0 if needs_gold or found else len(without_gold)) >= count:
                break
            seen += 1
            try:
                filled = examples.fill(position)
                instance = self._instance(f"{examples.name}/{position}", filled, complete)
                if instance.choices and instance.gold is None:
                    without_gold[position] = instance
                    raise RowProblem("gold answer not among the choices")
                found[position] = instance
            except RowProblem as error:
                kind = str(error)
                skipped[kind] += 1
                first.setdefault(kind, position)
                if kind.startswith("rendering stopped") and seen == skipped[kind] == STOPPED_AFTER:
                    raise TemplateProblem(kind) from None
        if without_gold and not found and not needs_gold:
            self.report.note("template whose targets are none of its choices, trained on without them", source.task_name)
            del skipped["gold answer not among the choices"]
            found = {position: replace(each, choices=(), gold=None) for position, each in without_gold.items()}
        for kind, times in skipped.items():
            self.report.note(f"row skipped: {kind}", f"{source.task_name} ({times} of {seen}, first {first[kind]})")
        return found

    def _instance(self, id_: str, filled: Filled, complete: bool) -> Instance:
        keep = complete or self.settings.with_prompt or self.settings.model_input == "prompt"
        return Instance(
            id=id_,
            input=filled.prompt if self.settings.model_input == "prompt" else filled.fields,
            references=filled.targets,
            choices=filled.choices,
            gold=filled.gold,
            prompt=filled.prompt if keep else "",
        )

"""Instances of one template over the rows of one data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tagi_lightning.data.epochs import random_generator
from tagi_lightning.data.p3.limits import RowProblem
from tagi_lightning.data.p3.lists import P3Dataset
from tagi_lightning.data.p3.render import Filled, PromptTemplate
from tagi_lightning.data.p3.rendered import RenderedRows
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.rows import Rows
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Demonstration, Instance, Task

ModelInput = Literal["fields", "prompt"]
"""What a model reads as b: what the row fills into the prompt, or the complete filled-in prompt."""
STOPPED_AFTER = 10
"""Rows, the first ones tried, whose rendering all hit a limit before a template is given up."""

POOL = 4
"""Times as many demonstrations a training task has as batches show: each batch draws others."""

NO_GOLD = "gold answer not among the choices"


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


@dataclass(frozen=True)
class Examples:
    """What the positions of a split give when a template is filled in.

    Attributes:
        name: `<data set>/<split>`, the beginning of an instance's id.
        count: Number of positions.
        fill: Fills in the row at a position, or raises `RowProblem`.
    """

    name: str
    count: int
    fill: Callable[[int], Filled]

    @classmethod
    def raw(cls, name: str, template: PromptTemplate, rows: Rows, seed: int) -> Examples:
        """Returns the examples that a template makes of raw rows."""

        def fill(position: int) -> Filled:
            row = rows[position]
            if row is None:
                raise RowProblem("row that is no UTF-8 text or no JSON object")
            return template.fill(row, f"{name}/{position}", seed)

        return cls(name, len(rows), fill)

    @classmethod
    def rendered(cls, name: str, rows: Rows) -> Examples:
        """Returns the examples of rows that are already rendered."""
        found = RenderedRows(rows)
        return cls(name, len(found), found.fill)


@dataclass(frozen=True)
class TemplateTask:
    """One template over one data set, from which a task is made.

    Attributes:
        dataset: The data set.
        template: The template.
        splits: Its examples in each split there is.
        settings: How instances are made.
        report: Receives what is skipped.
    """

    dataset: P3Dataset
    template: PromptTemplate
    splits: dict[str, Examples]
    settings: Settings
    report: DataReport

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.dataset.task_name(self.template.name)

    def task(self, instances: Sequence[Instance], demonstrations: tuple[Demonstration, ...] = ()) -> Task:
        """Returns the task with `instances`."""
        name = self.dataset.name
        definitions = (self.template.instruction,)
        return Task(self.name, name, definitions, demonstrations, tuple(instances), name, self.template.name)

    def permutation(self, split: str, *key: object) -> list[int]:
        """Returns the positions of a split in an order by (seed, key)."""
        order: list[int] = random_generator(self.settings.seed, *key).permutation(self.splits[split].count).tolist()
        return order

    def demonstrations(self, shots: int, test_split: str) -> tuple[tuple[Demonstration, ...], frozenset[int]]:
        """Draws demonstrations by (seed, data set), of training rows where there are any.

        Args:
            shots: How many to draw; fewer where there are not so many usable rows, which is noted.
            test_split: Split that they are drawn from where there are no training rows.

        Returns:
            The demonstrations, and the positions of the test split that they take away from evaluation.
        """
        split = "train" if "train" in self.splits else test_split
        order = self.permutation(split, self.dataset.name, "demonstrations")
        found = self.collect(split, order, shots, needs_gold=False, keep_prompt=True)
        if len(found) < shots:
            self.report.note(f"test task with fewer than {shots} demonstrations", f"{self.name} ({len(found)})")
        shown = tuple(Demonstration(each.prompt, each.references[0]) for each in found.values())
        return shown, frozenset() if split == "train" else frozenset(found)

    def training_demonstrations(self, shots: int, taken: Collection[int]) -> tuple[Demonstration, ...]:
        """Draws the demonstrations of a training task, from the end of the permutation that instances start.

        Args:
            shots: Demonstrations a batch shows; `POOL` times as many are drawn, or as many as there are.
            taken: Positions of the task's instances, which are left out.
        """
        order = [position for position in reversed(self.permutation("train", self.name)) if position not in taken]
        found = self.collect("train", order, POOL * shots, needs_gold=False, keep_prompt=True)
        if len(found) < shots:
            place = f"{self.name} ({len(found)}, beside {len(taken)} instances)"
            self.report.note(f"training task with fewer than {shots} demonstrations", place)
        return tuple(Demonstration(each.prompt, each.references[0]) for each in found.values())

    def collect(
        self, split: str, order: Sequence[int], count: int | None, needs_gold: bool, keep_prompt: bool = False
    ) -> dict[int, Instance]:
        """Returns the first `count` usable rows of `order` by position, and notes the others.

        A row whose target is not among its choices is skipped. But where that is so of all rows, as with
        "negative review." for "negative", and no gold answer is needed, instances go without choices.

        Args:
            split: Name of the split.
            order: Positions to try.
            count: How many to return; None for all.
            needs_gold: Whether an instance is of no use without its gold answer.
            keep_prompt: Keep complete prompts whatever the settings.

        Raises:
            TemplateProblem: If rendering cannot go on with any row.
        """
        examples = self.splits[split]
        found: dict[int, Instance] = {}
        without_gold: dict[int, Instance] = {}
        skipped: Counter[str] = Counter()
        first: dict[str, int] = {}
        for seen, position in enumerate(order):
            if count is not None and (len(found) >= count or (not found and len(without_gold) >= count)):
                break
            try:
                instance = self._instance(examples.fill(position), f"{examples.name}/{position}", keep_prompt)
                if instance.choices and instance.gold is None:
                    if not needs_gold:
                        without_gold[position] = replace(instance, choices=())
                    raise RowProblem(NO_GOLD)
                found[position] = instance
            except RowProblem as error:
                kind = str(error)
                skipped[kind] += 1
                first.setdefault(kind, position)
                if kind.startswith("rendering stopped") and seen + 1 == skipped[kind] == STOPPED_AFTER:
                    raise TemplateProblem(kind) from None
        if without_gold and not found:
            self.report.note("template whose targets are never among its choices, used without them", self.name)
            found = without_gold
            del skipped[NO_GOLD]
        tried = len(found) + skipped.total()
        for kind, times in skipped.items():
            place = f"{self.name} ({times} of {tried}, first {examples.name}/{first[kind]})"
            self.report.note(f"row skipped: {kind}", place)
        return found

    def _instance(self, filled: Filled, id_: str, keep_prompt: bool) -> Instance:
        prompt_is_input = self.settings.model_input == "prompt"
        if not prompt_is_input and not filled.fields:
            raise RowProblem("row that fills nothing into the template")
        return Instance(
            id=id_,
            input=filled.prompt if prompt_is_input else filled.fields,
            references=filled.targets,
            choices=filled.choices,
            gold=filled.gold,
            prompt=filled.prompt if keep_prompt or prompt_is_input or self.settings.with_prompt else "",
        )

"""Which examples stand together in a batch, and in which order: a function of (seed, epoch, position) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tagi_lightning.data.epochs import Batch, EpochSampler, random_generator
from tagi_lightning.data.prompts import PromptAssembler
from tagi_lightning.data.tokenized import ExampleIndex, TokenizedTasks

INSTANCE_JITTER = 0.02
"""Relative noise on the lengths of a task's instances before sorting, so that every epoch groups other instances."""

GROUP_JITTER = 0.2
"""Relative noise on the lengths of groups before sorting, so that every epoch brings other tasks together."""


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """What a sampler knows of a task.

    Attributes:
        name: The task's name.
        instruction: Tokens of its instruction, in the first phrasing.
        inputs: Tokens of each of its instances' inputs.
        targets: Tokens of each of its instances' targets, over its references on average.
    """

    name: str
    instruction: int
    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def task_lengths(tasks: TokenizedTasks, assembler: PromptAssembler) -> list[TaskLengths]:
    """Returns the lengths of the rows that `assembler` makes of `tasks`."""
    room, frame = assembler.input_room(), len(assembler.input(()))
    found = zip(tasks.tasks, tasks.text_lengths(), tasks.reference_lengths(), strict=True)
    return [
        TaskLengths(
            name=task.name,
            instruction=len(assembler.instruction(task.definitions[0], task.demonstrations)),
            inputs=texts.clip(max=room) + frame,
            targets=(references + 1).clip(max=assembler.max_output_length),
        )
        for task, texts, references in found
    ]


class _Group(NamedTuple):
    """Instances of one task that stay together in a batch."""

    task: int
    instances: NDArray[np.int64]


class TaskBatchSampler(EpochSampler):
    """Training batches of T tasks × n instances, grouped by task; every instance once an epoch.

    Each task's instances are cut into as few groups of at most n as there can be, of similar input length; where n
    does not divide their number, some groups have one instance less.

    The groups then queue up from short to long inputs, roughly: noise on the lengths changes the queue each epoch.
    The head of the queue takes those T - 1 groups of other tasks into its batch, out of a pool of some batches'
    worth behind it, that pad the batch least in instruction, inputs and targets together. When all are taken the
    batches are shuffled over the whole epoch, so that neither lengths nor tasks of one batch tell those of the next.

    Every batch but the last of an epoch has T groups. They are of T distinct tasks, except where the pool holds too
    few tasks: groups of one task then stand in one batch as one larger group.
    """

    def __init__(
        self,
        tasks: Sequence[TaskLengths],
        tasks_per_batch: int,
        instances_per_task: int,
        seed: int,
        pool_batches: int = 200,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Takes the lengths to plan by.

        Args:
            tasks: The training tasks, in the order indices refer to.
            tasks_per_batch: Groups in a global batch, T.
            instances_per_task: Instances in a group, n.
            seed: Decides the order together with the epoch.
            pool_batches: Batches' worth of groups that a batch is chosen from: more means less padding, fewer
                means that a task meets more other tasks.
            rank: This process.
            world_size: Number of processes that share each batch.
        """
        super().__init__(rank, world_size)
        self.tasks = tasks
        self.tasks_per_batch, self.instances_per_task = tasks_per_batch, instances_per_task
        self.seed, self.pool_batches = seed, pool_batches

    def __len__(self) -> int:
        groups = sum(-(-len(task.inputs) // self.instances_per_task) for task in self.tasks)
        return -(-groups // self.tasks_per_batch)

    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`."""
        groups = [group for number in range(len(self.tasks)) for group in self._groups(number, epoch)]
        generator = random_generator(self.seed, epoch, "order")
        batches = self._batches(groups, generator)
        short = [batches.pop()] if len(groups) % self.tasks_per_batch else []
        shuffled = [batches[place] for place in generator.permutation(len(batches))]
        return [self._indices(batch, epoch) for batch in shuffled + short]

    def _groups(self, number: int, epoch: int) -> list[_Group]:
        """Cuts a task's instances into groups of similar input length."""
        task = self.tasks[number]
        noise = _noise(random_generator(self.seed, epoch, task.name), INSTANCE_JITTER, len(task.inputs))
        order = np.argsort(task.inputs * noise, kind="stable")
        return [_Group(number, part) for part in np.array_split(order, -(-len(order) // self.instances_per_task))]

    def _batches(self, groups: list[_Group], generator: np.random.Generator) -> list[list[_Group]]:
        """Cuts the groups into batches, from short inputs to long."""
        task = np.array([group.task for group in groups])
        positions = np.array([self._positions(group) for group in groups])
        queue = np.argsort(positions[:, 1] * _noise(generator, GROUP_JITTER, len(groups)), kind="stable")
        size = self.pool_batches * self.tasks_per_batch
        pool, queue = queue[:size], queue[size:]
        batches = []
        while len(pool):
            chosen = self._choose(task[pool], positions[pool])
            batches.append([groups[place] for place in pool[chosen]])
            pool = np.concatenate([np.delete(pool, chosen), queue[: len(chosen)]])
            queue = queue[len(chosen) :]
        return batches

    def _positions(self, group: _Group) -> tuple[int, int, int]:
        """Returns the positions that a group takes in a batch of its own: instruction, inputs, targets."""
        task, count = self.tasks[group.task], self.instances_per_task
        inputs, targets = task.inputs[group.instances].max(), task.targets[group.instances].max()
        return task.instruction, count * int(inputs), count * int(targets)

    def _choose(self, task: NDArray[np.int64], positions: NDArray[np.int64]) -> list[int]:
        """Returns the places of a batch in a pool: the first, then each time the group that adds the least padding.

        Args:
            task: The task of each group of the pool.
            positions: What each takes up in a batch of its own.
        """
        chosen, longest = [0], positions[0]
        free, others = np.arange(len(task)) > 0, task != task[0]
        while len(chosen) < self.tasks_per_batch and free.any():
            padding = np.maximum(positions - longest, 0) * len(chosen) + np.maximum(longest - positions, 0)
            allowed = free & others
            place = int(np.where(allowed if allowed.any() else free, padding.sum(axis=1), np.inf).argmin())
            chosen.append(place)
            longest = np.maximum(longest, positions[place])
            free[place] = False
            others &= task != task[place]
        return chosen

    @staticmethod
    def _indices(batch: list[_Group], epoch: int) -> Batch:
        together = sorted(batch, key=lambda group: group.task)
        return [ExampleIndex(group.task, int(instance), epoch) for group in together for instance in group.instances]


class EvaluationSampler(EpochSampler):
    """Every instance once, task by task, of each task the longest first; the same in every epoch.

    Tasks that fit into a batch whole share it and are never cut; a larger task has batches of its
    own, one after the other. So each instruction need be encoded only once. If one of these has to be short,
    it is the first, since the longest inputs differ most in length.
    """

    def __init__(self, tasks: Sequence[TaskLengths], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        """Takes the lengths to plan by.

        Args:
            tasks: The tasks, in the order indices refer to.
            batch_size: Examples in a global batch at most.
            rank: This process.
            world_size: Number of processes that share each batch.
        """
        super().__init__(rank, world_size)
        self.batches: list[Batch] = []
        room = 0
        for number, task in enumerate(tasks):
            order = np.argsort(-task.inputs, kind="stable")
            indices = [ExampleIndex(number, int(instance), None) for instance in order]
            if len(indices) <= room:
                self.batches[-1] += indices
                room -= len(indices)
                continue
            first = len(indices) % batch_size or batch_size
            starts = range(first, len(indices), batch_size)
            self.batches += [indices[:first], *(indices[start : start + batch_size] for start in starts)]
            room = batch_size - first if len(indices) == first else 0

    def __len__(self) -> int:
        return len(self.batches)

    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches."""
        return self.batches


class InstructionSampler(EpochSampler):
    """Training tasks without instances, T to a batch: each task's instruction once an epoch, shuffled."""

    def __init__(self, tasks: int, tasks_per_batch: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Takes what to plan for.

        Args:
            tasks: Number of tasks.
            tasks_per_batch: Tasks in a global batch, T.
            seed: Decides the order together with the epoch.
            rank: This process.
            world_size: Number of processes that share each batch.
        """
        super().__init__(rank, world_size)
        self.tasks, self.tasks_per_batch, self.seed = tasks, tasks_per_batch, seed

    def __len__(self) -> int:
        return -(-self.tasks // self.tasks_per_batch)

    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`; their instance is -1."""
        order = random_generator(self.seed, epoch, "instructions").permutation(self.tasks)
        indices = [ExampleIndex(int(task), -1, epoch) for task in order]
        return [indices[start : start + self.tasks_per_batch] for start in range(0, self.tasks, self.tasks_per_batch)]


def _noise(generator: np.random.Generator, width: float, size: int) -> NDArray[np.float64]:
    """Returns factors around 1."""
    return generator.uniform(1 - width, 1 + width, size)

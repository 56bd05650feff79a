"""Which examples stand together in a batch, and in which order: a function of (seed, epoch, position) alone."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from tagi_lightning.data.tokenized import ExampleIndex

Batch = list[ExampleIndex]

LENGTH_JITTER = 0.05
"""Relative noise on lengths before sorting, so that every epoch groups other instances."""


def random_generator(*key: object) -> np.random.Generator:
    """Returns a generator that depends on `key` alone, in every process and on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


@dataclass(frozen=True, slots=True)
class TaskLengths:
    """What a sampler knows of a task.

    Attributes:
        name: The task's name.
        instruction: Tokens of its instruction.
        inputs: Tokens of each of its instances' inputs.
    """

    name: str
    instruction: int
    inputs: NDArray[np.int64]


class EpochSampler(Sampler[Batch]):
    """Yields the batches an epoch plans, from a start position on, and of each this rank's share.

    The sequence of global batches does not depend on `world_size`: each rank takes its contiguous
    share of each. Batches are task by task, so that shares keep tasks together. A batch of fewer
    examples than ranks is repeated until each rank has one. Lightning must leave such a sampler
    alone: set `use_distributed_sampler=False` in the Trainer.

    Attributes:
        epoch: The epoch that iteration yields.
        start: Position of the batch that the next iteration starts with.
        position: Number of the epoch's batches consumed so far; the loader counts, as workers ask ahead.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.seek(0, 0)

    @abstractmethod
    def plan(self, epoch: int) -> list[Batch]:
        """Returns all global batches of `epoch`, as many in every epoch."""

    @property
    def sampler(self) -> EpochSampler:
        """Itself: Lightning calls `set_epoch` on the `sampler` of a DataLoader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to `epoch`, from its first batch unless it is the current one."""
        if epoch != self.epoch:
            self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Goes to the batch at `position` of `epoch`, where the next iteration starts; any further one at the first."""
        self.epoch, self.start, self.position = epoch, position, position

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        for batch in self.plan(self.epoch)[start:]:
            yield share(batch, self.rank, self.world_size)


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """Returns a rank's contiguous share of a global batch, never empty."""
    if len(batch) < world_size:
        return [batch[rank % len(batch)]]
    start, stop = (len(batch) * place // world_size for place in (rank, rank + 1))
    return batch[start:stop]


class _Group(NamedTuple):
    """Instances of one task that stay together in a batch."""

    task: int
    instances: NDArray[np.int64]
    length: int


class TaskBatchSampler(EpochSampler):
    """Training batches of T tasks × n instances, grouped by task; every instance once an epoch.

    Each task's instances are cut into as few groups of at most n as there can be, of similar length; where n
    does not divide their number, some groups have one instance less.
    Groups are shuffled; within a pool of some batches those of similar instruction and input length
    come together, and the batches of a pool are shuffled. Every batch but the last of an epoch has
    T groups. They are of T distinct tasks, except at the end of a pool where too few tasks are
    left: groups of one task then stand in one batch as one larger group.
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
            pool_batches: Batches among which groups are sorted by length: more means less padding, fewer means
                more random batches.
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
        groups = [group for task in range(len(self.tasks)) for group in self._groups(task, epoch)]
        generator = random_generator(self.seed, epoch, "pools")
        groups = [groups[place] for place in generator.permutation(len(groups))]
        size = self.pool_batches * self.tasks_per_batch
        batches = []
        for start in range(0, len(groups), size):
            pool = self._pool_batches(groups[start : start + size])
            last = [pool.pop()] if start + size >= len(groups) else []
            batches += [pool[place] for place in generator.permutation(len(pool))] + last
        return [self._indices(batch, epoch) for batch in batches]

    def _groups(self, task: int, epoch: int) -> list[_Group]:
        lengths = self.tasks[task].inputs
        generator = random_generator(self.seed, epoch, self.tasks[task].name)
        noise = generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
        order = np.argsort(lengths * noise, kind="stable")
        parts = np.array_split(order, -(-len(order) // self.instances_per_task))
        return [_Group(task, part, int(lengths[part].max())) for part in parts]

    def _pool_batches(self, pool: list[_Group]) -> list[list[_Group]]:
        """Cuts a pool into batches, from short to long, adding the group that costs the least padding."""
        task = np.array([group.task for group in pool])
        instruction = np.array([self.tasks[group.task].instruction for group in pool])
        text = np.array([group.length for group in pool])
        free = np.ones(len(pool), dtype=bool)
        batches = []
        for seed in np.argsort(instruction + self.instances_per_task * text, kind="stable"):
            if not free[seed]:
                continue
            batch = [int(seed)]
            free[seed] = False
            while len(batch) < self.tasks_per_batch and free.any():
                allowed = free & ~np.isin(task, task[batch])
                padding = _padding(instruction, batch) + self.instances_per_task * _padding(text, batch)
                batch.append(int(np.where(allowed if allowed.any() else free, padding, np.inf).argmin()))
                free[batch[-1]] = False
            batches.append([pool[place] for place in batch])
        return batches

    @staticmethod
    def _indices(batch: list[_Group], epoch: int) -> Batch:
        together = sorted(batch, key=lambda group: group.task)
        return [ExampleIndex(group.task, int(instance), epoch) for group in together for instance in group.instances]


class EvaluationSampler(EpochSampler):
    """Every instance once, task by task, of each task the longest first; the same in every epoch.

    Tasks that fit into a batch whole share it and are never cut; a larger task has batches of its
    own, one after the other. So each instruction need be encoded only once.
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
            parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
            self.batches += parts
            room = batch_size - len(parts[0]) if len(parts) == 1 else 0

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


def _padding(lengths: NDArray[np.int64], batch: list[int]) -> NDArray[np.int64]:
    """Returns, for each candidate, the padding that it adds to `batch` or brings along."""
    longest = lengths[batch].max()
    added: NDArray[np.int64] = np.maximum(lengths - longest, 0) * len(batch) + np.maximum(longest - lengths, 0)
    return added

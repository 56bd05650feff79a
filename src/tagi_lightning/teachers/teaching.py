"""Teaching a bank: each example's loss, each adapter's number of steps, and when an adapter stops.

Shapes: B examples, T tasks, K adapters, S input tokens, O output tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import Backbone
from tagi_lightning.data.batch import Tokens
from tagi_lightning.data.ranges import check_range
from tagi_lightning.lora import LoraBank
from tagi_lightning.losses import prediction_loss


def teacher_losses(
    backbone: Backbone, bank: LoraBank, prompt: Tokens, labels: Tensor, category: Tensor, task_index: Tensor
) -> Tensor:
    """Returns the cross entropy of each example under the adapter of its task's category [B].

    Args:
        backbone: The frozen language model.
        bank: The adapters, one a category.
        prompt: Instruction and input concatenated, (a;b) [B, S].
        labels: Targets c [B, O].
        category: Category of each task [T].
        task_index: Task of each example, non-decreasing [B].
    """
    adapter = TaskAdapter(lora=bank(category))
    return prediction_loss(backbone(prompt, labels, adapter, task_index), labels)


def count_steps(batches: Sequence[Collection[int]], adapters: int, accumulate: int, steps: int) -> list[int]:
    """Returns how many of a training's optimizer steps each adapter takes part in, K long and at least 1.

    Args:
        batches: Adapters of each batch of one epoch, taken as typical of all.
        adapters: K, the number of adapters.
        accumulate: Batches to one optimizer step.
        steps: Optimizer steps of the training.
    """
    windows = [set().union(*batches[start : start + accumulate]) for start in range(0, len(batches), accumulate)]
    shares = [sum(adapter in window for window in windows) / len(windows) for adapter in range(adapters)]
    return [max(1, round(steps * share)) for share in shares]


class AdapterSelection:
    """Keeps each adapter's weights of its best validation, and stops an adapter that no longer improves.

    Adapters without validation examples never stop and keep their last weights. A validation counts for the adapters
    that have moved since the one before.

    Attributes:
        best: Least validation loss of each adapter so far [K], infinite before its first.
        waited: Validations of each adapter since then [K].
        steps: Optimizer steps of each adapter at its last validation [K].
        stopped: Adapters that have stopped [K].
    """

    _counts = ("best", "waited", "steps", "stopped")

    def __init__(self, bank: LoraBank, patience: int | None) -> None:
        """Takes what to watch.

        Args:
            bank: The adapters in training.
            patience: Validations without improvement after which an adapter stops; None never stops any.

        Raises:
            ValueError: If `patience` is below 1.
        """
        check_range({"patience": patience}, least=1, otherwise="null to stop no teacher")
        self.bank, self.patience = bank, patience
        count = len(bank.names)
        self.best = torch.full((count,), math.inf, dtype=torch.float64)
        self.waited = torch.zeros(count, dtype=torch.long)
        self.steps = torch.zeros(count, dtype=torch.long)
        self.stopped = torch.zeros(count, dtype=torch.bool)
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, losses: Tensor, examples: Tensor, steps: Tensor) -> None:
        """Takes the result of one validation, and sets adapters that stop back to their best weights.

        Args:
            losses: Summed validation loss of each adapter [K].
            examples: Number of its validation examples [K].
            steps: Optimizer steps it has made [K].
        """
        examples, steps = examples.cpu(), steps.cpu().long()
        means = losses.cpu().double() / examples.clamp_min(1)
        measured = (examples > 0) & (steps > self.steps) & ~self.stopped
        better = measured & (means < self.best)
        self.steps = torch.where(measured, steps, self.steps)
        self.best = torch.where(better, means, self.best)
        self.waited = torch.where(better, 0, self.waited + measured.long())
        stops = measured & (self.waited >= self.patience) if self.patience is not None else torch.zeros_like(measured)
        self.stopped |= stops
        current = dict(self.bank.named_parameters())
        if not self._weights:
            self._weights = {name: parameter.clone() for name, parameter in current.items()}
        for name, parameter in current.items():
            _copy_rows(parameter, self._weights[name], better)
            _copy_rows(self._weights[name], parameter, stops & self.best.isfinite())

    def selected(self) -> LoraBank:
        """Returns the bank with every validated adapter at its best weights; the bank in training stays as it is."""
        if not self._weights:
            return self.bank
        bank = copy.deepcopy(self.bank)
        with torch.no_grad():
            for name, parameter in bank.named_parameters():
                _copy_rows(self._weights[name], parameter, self.best.isfinite())
        return bank

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs."""
        return {**{name: getattr(self, name) for name in self._counts}, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        for name in self._counts:
            setattr(self, name, state[name].cpu())
        devices = {name: parameter.device for name, parameter in self.bank.named_parameters()}
        self._weights = {name: weights.to(devices[name]) for name, weights in state["weights"].items()}


def _copy_rows(source: Tensor, target: Tensor, rows: Tensor) -> None:
    """Copies those rows of `source` [K, ...] for which `rows` [K] is set into `target`."""
    chosen = rows.nonzero().flatten()
    target[chosen.to(target.device)] = source[chosen.to(source.device)].to(target.device)

"""AdamW for a bank of adapters: each one moves as if it were trained alone.

Shapes: B examples, K adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

Schedule = Callable[[int], float]
"""Factor of the learning rate by the number of steps an adapter has made."""


class BankAdamW(torch.optim.Optimizer):
    """AdamW over stacked parameters [K, ...], row k of each being adapter k.

    An adapter has its own gradient norm, moments, step count and learning rate. A step moves the adapters that
    examples were counted of; the others stay bit for bit, without momentum and weight decay.

    The loss is the sum over the examples; `average_and_clip` makes of its gradient the mean over each adapter's own
    examples, in however many batches they came. One step is: `zero_grad`, backward and `count` for every batch,
    `average_and_clip`, `step`.

    Attributes:
        examples: Examples of each adapter since `zero_grad` [K].
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        schedules: Sequence[Schedule] | None = None,
    ) -> None:
        """Takes the settings of `torch.optim.AdamW`.

        Args:
            parameters: Stacked parameters, each [K, ...].
            lr: Peak learning rate. The group's `lr` is the mean rate of the last step, for curves.
            weight_decay: Decoupled weight decay.
            betas: Decay of the first and the second moment.
            eps: Added to the root of the second moment.
            schedules: Each adapter's schedule, K long; None for a constant rate.
        """
        settings = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        # "fused" is what makes torch put loaded step counts on the parameters' device
        super().__init__(parameters, settings | {"fused": True})
        self.lr, self.schedules = lr, schedules
        self.examples = torch.zeros(len(self._stacks[0]), dtype=torch.long)
        for stack in self._stacks:
            self.state[stack] = {
                "step": torch.zeros(len(stack), device=stack.device),
                "exp_avg": torch.zeros_like(stack),
                "exp_avg_sq": torch.zeros_like(stack),
            }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients and counts."""
        super().zero_grad(set_to_none)
        self.examples = torch.zeros_like(self.examples)

    def count(self, adapters: Tensor) -> None:
        """Counts the examples that a backward pass was about, by their adapters [B]."""
        self.examples = self.examples.to(adapters.device).index_add(0, adapters, torch.ones_like(adapters))

    @torch.no_grad()
    def average_and_clip(self, max_norm: float | None = None, scale: float = 1.0) -> Tensor:
        """Divides each adapter's gradient by the number of its examples, then clips its norm over all parameters.

        Args:
            max_norm: Largest norm of an adapter's mean gradient; None does not clip.
            scale: Undoes what the summed loss was divided by.

        Returns:
            Norms of the mean gradients before clipping [K], 0 where an adapter had no example.
        """
        examples, norms = self.examples.tolist(), torch.zeros(len(self.examples), device=self._stacks[0].device)
        for adapter, _, gradients in self._rows():
            mean = scale / examples[adapter]
            norms[adapter] = torch.nn.utils.get_total_norm(gradients) * mean
            clip = 1.0 if max_norm is None else (max_norm / (norms[adapter] + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(mean * clip)
        return norms

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Moves the adapters that had examples."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        [group] = self.param_groups
        rates = {}
        steps = self.steps.tolist()
        for adapter, parameters, gradients in self._rows():
            rates[adapter] = self.lr * (self.schedules[adapter](int(steps[adapter])) if self.schedules else 1.0)
            adamw(
                parameters,
                gradients,
                *self._moments(adapter),
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=rates[adapter],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        if rates:
            group["lr"] = sum(rates.values()) / len(rates)
        return loss

    @property
    def steps(self) -> Tensor:
        """Steps that each adapter has made [K]."""
        steps: Tensor = self.state[self._stacks[0]]["step"]
        return steps

    @property
    def _stacks(self) -> list[nn.Parameter]:
        [group] = self.param_groups
        stacks: list[nn.Parameter] = group["params"]
        return stacks

    def _rows(self) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
        """Yields each adapter that had examples, with its rows of the parameters and of their gradients."""
        for adapter in self.examples.nonzero().flatten().tolist():
            gradients = [stack.grad[adapter] for stack in self._stacks if stack.grad is not None]
            yield adapter, [stack[adapter] for stack in self._stacks], gradients

    def _moments(self, adapter: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Returns an adapter's rows of the state as `adamw` takes them: moments, none for AMSGrad, step counts."""
        states = [self.state[stack] for stack in self._stacks]
        first, second, steps = (
            [state[name][adapter] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        return first, second, [], steps

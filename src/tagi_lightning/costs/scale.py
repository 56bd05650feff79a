"""What each stage needs at each size: parameters, operations and memory, told from shapes alone.

A stage's step runs forward and backward on tensors without storage (fake tensors): operations are counted, and what
autograd keeps for the backward pass is added up. The same step runs on real tensors where a size fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tagi_lightning.costs.flops import count_flops, eager_attention
from tagi_lightning.costs.stage_step import Execution, StageStep, Workload

Strategy = Literal["ddp", "fsdp", "deepspeed_stage_2"]
"""How several devices share a model; the names are those of Lightning's strategies."""

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one stage needs on one device. Bytes are of one batch's forward and backward pass.

    Attributes:
        trained: Trained parameters.
        frozen: Frozen parameters, a bank of teachers included.
        frozen_bytes: Their bytes as stored.
        optimizer_bytes: State of the optimizer.
        activation_bytes: What is kept for the backward pass; in `evaluate` the keys and values of all tokens.
        temporary_bytes: Gradients of logits and of log-probabilities, the largest tensors that come and go.
        flops: Operations of a batch, forward and backward; in `evaluate` of answers of the references' length.
        accumulate: Batches to one step of the optimizer.
        seconds: Measured time of a batch; 0 where it was told from shapes.
        peak_bytes: Measured growth of the process's memory by model and batch; 0 likewise.
    """

    trained: int
    frozen: int
    frozen_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    temporary_bytes: int
    flops: int
    accumulate: int
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: Trained and frozen weights as stored.
        gathered: Weights brought together for a pass.
        gradients: Gradients of the trained weights, buckets included.
        optimizer: State of the optimizer, float32 copies of weights included.
        activations: What is kept for the backward pass, and the largest temporary tensors.
    """

    weights: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum, without the allocator's slack, smaller temporary tensors and the CUDA context."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations


@contextmanager
def saved_bytes(modules: nn.Module) -> Iterator[Callable[[], int]]:
    """Adds up the storages that autograd saves inside the block, each once, those of `modules` left out.

    Yields:
        A function that returns the sum so far.
    """
    held = {tensor.untyped_storage()._cdata for tensor in (*modules.parameters(), *modules.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in kept.values())


def optimizer_bytes(parameters: Sequence[nn.Parameter], optimizer: str) -> int:
    """Returns the bytes of an optimizer's state: AdamW's two moments, or Adafactor's rows and columns, in float32."""
    if optimizer == "adamw":
        return sum(8 * parameter.numel() for parameter in parameters)
    if optimizer == "adafactor":
        return sum(
            4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) if p.dim() > 1 else 4 * p.numel()
            for p in parameters
        )
    return 0


@cache
def estimate(stage: str, size: str, work: Workload, execution: Execution) -> Cost:
    """Tells the cost of one batch of `stage` on one device from shapes, with nothing computed.

    Args:
        stage: A stage, or evaluate.
        size: A built-in size.
        work: What the device reads of a batch.
        execution: How the stage runs.
    """
    with FakeTensorMode():
        step = StageStep(stage, size, work, execution)
        with torch.set_grad_enabled(stage != "evaluate"):
            with saved_bytes(step) as saved:
                loss = step()
            activations = saved() + _recomputed_bytes(stage, size, work, execution, saved())
            del loss
            with eager_attention(step.backbone.model):
                flops = count_flops(lambda: _run(step))
        return _cost(step, step.cache_bytes() if stage == "evaluate" else activations, flops)


def _recomputed_bytes(stage: str, size: str, work: Workload, execution: Execution, kept: int) -> int:
    """Returns what one block of each stack keeps once it is computed again: its share of what checkpointing leaves out.

    Args:
        stage: The stage.
        size: A built-in size.
        work: What it reads.
        execution: How it runs.
        kept: What the checkpointed step keeps.
    """
    if not execution.gradient_checkpointing or stage == "evaluate":
        return 0
    plain = StageStep(stage, size, work, replace(execution, gradient_checkpointing=False))
    with saved_bytes(plain) as saved:
        plain()
    return max(0, saved() - kept) // int(plain.backbone.model.config.num_layers)


def _run(step: StageStep) -> None:
    result = step()
    if result.requires_grad:
        result.backward()


def measure(stage: str, size: str, work: Workload, execution: Execution) -> Cost:
    """Measures the cost of one batch of `stage` on this CPU, on real tensors; its time, on the second batch.

    Memory is told by the process's peak, which never falls: only the first call in a process tells it right, and only
    on Linux.
    """
    before = _peak_memory()
    step = StageStep(stage, size, work, execution)
    with torch.set_grad_enabled(stage != "evaluate"):
        with saved_bytes(step) as saved:
            _run(step)
        activations = saved()
        step.zero_grad()
        peak = _peak_memory() - before
        start = time.perf_counter()
        _run(step)
        seconds = time.perf_counter() - start
    cost = _cost(step, activations if stage != "evaluate" else step.cache_bytes(), 0)
    return replace(cost, seconds=seconds, peak_bytes=peak)


def _peak_memory() -> int:
    """Returns the most bytes this program has held; getrusage would tell of its parent, where that held more."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _cost(step: StageStep, activations: int, flops: int) -> Cost:
    trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in step.parameters() if not parameter.requires_grad]
    return Cost(
        trained=sum(parameter.numel() for parameter in trained),
        frozen=sum(parameter.numel() for parameter in frozen),
        frozen_bytes=sum(parameter.nbytes for parameter in frozen),
        optimizer_bytes=optimizer_bytes(trained, step.work.optimizer),
        activation_bytes=activations,
        temporary_bytes=step.temporary_bytes(),
        flops=flops,
        accumulate=step.work.accumulate,
    )


def memory(cost: Cost, strategy: Strategy, devices: int) -> Memory:
    """Shares a stage's memory out over devices; `cost` is of what one device reads.

    ddp copies everything and holds gradients twice, in its buckets. fsdp stores 1/N of the weights, all in float32, and
    gathers all of them in bfloat16 for a pass, since the model is one unit. deepspeed_stage_2 holds all weights in
    16 bits (int8 stays) and 1/N of gradients, float32 copies and optimizer state.

    Args:
        cost: What one device needs alone.
        strategy: How devices share.
        devices: Number of devices N; with 1, every strategy is the plain one.
    """
    gradients = 4 * cost.trained
    weights, activations = cost.frozen_bytes + 4 * cost.trained, cost.activation_bytes + cost.temporary_bytes
    if devices == 1:
        return Memory(weights, 0, gradients, cost.optimizer_bytes, activations)
    if strategy == "ddp":
        return Memory(weights, 0, 2 * gradients, cost.optimizer_bytes, activations)
    optimizer = cost.optimizer_bytes // devices
    if strategy == "fsdp":
        parameters = cost.trained + cost.frozen
        stored, gathered = 4 * parameters // devices, 2 * parameters
        return Memory(stored, gathered, gradients // devices, optimizer, activations)
    halved = min(cost.frozen_bytes, 2 * cost.frozen) + 2 * cost.trained
    return Memory(halved, 0, gradients // 2 // devices, optimizer + gradients // devices, activations)

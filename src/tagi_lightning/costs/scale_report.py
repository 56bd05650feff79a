"""Tables of what the stages need, at the batches that the experiment files name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tagi_lightning.backbones import SIZES
from tagi_lightning.costs.lengths import INPUT, INSTRUCTIONS, OUTPUT
from tagi_lightning.costs.scale import GIB, Cost, Strategy, estimate, measure, memory
from tagi_lightning.costs.stage_step import Execution, Workload
from tagi_lightning.markdown import aligned_table
from tagi_lightning.storage.run_layout import EVALUATE, STAGES

STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "deepspeed_stage_2")

TEXT_LENGTH, EVAL_BATCH = 512, 32
"""Tokens of a sequence in `pretrain-backbone`, and examples in a batch of `evaluate`: the data modules' defaults."""


def workloads(experiments: Path, size: str, setting: str) -> dict[str, Workload]:
    """Returns what each stage reads in a batch over all devices, by the experiment files, at SNI's mean lengths.

    Args:
        experiments: The folder of the experiment files.
        size: A built-in size.
        setting: `def` or `def+2pos`.

    Raises:
        FileNotFoundError: If the folder holds no stages.
        ValueError: If size or setting is unknown.
    """
    for name, value, known in (("size", size, SIZES), ("setting", setting, INSTRUCTIONS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    if not (experiments / "stages").is_dir():
        raise FileNotFoundError(f"no experiment files in {experiments}; name their folder: --experiments FOLDER")
    return {stage: _workload(stage, experiments, size, INSTRUCTIONS[setting]) for stage in (*STAGES, EVALUATE)}


def _workload(stage: str, experiments: Path, size: str, instruction: int) -> Workload:
    def value(of: str, key: str, default: Any = None) -> Any:
        files = (experiments / name for name in (f"stages/{of}.yaml", f"sizes/{size}/{of}.yaml"))
        merged = OmegaConf.merge(*(OmegaConf.load(file) for file in files if file.is_file()))
        found = OmegaConf.select(merged, key)
        return default if found is None else found

    rank = value("teachers", "model.init_args.lora.rank")
    accumulate = value(stage, "trainer.accumulate_grad_batches", 1)
    optimizer = value(stage, "model.init_args.optimizer.name", "none")
    common = {"rank": rank, "accumulate": accumulate, "optimizer": optimizer}
    if stage == "pretrain-backbone":
        # span corruption of 15 %, in spans of three, with a sentinel for each
        batch = value(stage, "data.init_args.batch_size", 8)
        return Workload(1, batch, 0, round(0.9 * TEXT_LENGTH), round(0.2 * TEXT_LENGTH), **common)
    if stage == "pretrain":
        batch, third = value(stage, "data.init_args.batch_size"), value(stage, "data.init_args.max_length") // 3
        return Workload(batch, batch, third, third, third, **common)
    if stage == "evaluate":
        return Workload(1, EVAL_BATCH, instruction, INPUT, OUTPUT, **common)
    tasks = value(stage, "data.init_args.tasks_per_batch")
    examples = tasks * value(stage, "data.init_args.instances_per_task", 1)
    return Workload(tasks, examples, instruction, INPUT, OUTPUT, **common)


def gib(count: float) -> str:
    """Returns bytes in GiB."""
    return f"{count / GIB:.2f}" if count < 10 * GIB else f"{count / GIB:.0f}"


def device_cost(stage: str, size: str, work: Workload, execution: Execution, strategy: Strategy, devices: int) -> Cost:
    """Returns what one of several devices needs; `work` is of all of them.

    Raises:
        ValueError: If fsdp is to shard an 8-bit backbone.
    """
    if strategy == "fsdp" and devices > 1:
        if execution.quantization:
            raise ValueError("fsdp shards weights of one type and takes no 8-bit backbone; leave --quantization null")
        # it stores float32, and gathers what a pass reads in the type of the pass
        execution = replace(execution, dtype="bfloat16" if execution.mixed else "float32")
    return estimate(stage, size, work.share(devices), execution)


def needed(
    stage: str, size: str, work: Workload, execution: Execution, strategy: Strategy = "ddp", devices: int = 1
) -> str:
    """Returns the GiB that each device needs for a stage."""
    return gib(memory(device_cost(stage, size, work, execution, strategy, devices), strategy, devices).total)


def step_flops(stage: str, size: str, work: Workload, execution: Execution) -> float:
    """Returns the operations of one step of the optimizer over all devices."""
    return float(estimate(stage, size, work, execution).flops * work.accumulate)


STAGE_HEADER = (
    "stage", "trained M", "frozen M", "TFLOP a step", "weights", "gathered", "gradients", "optimizer", "activations",
    "sum", "with checkpointing", "s a step",
)  # fmt: skip


def stage_table(
    works: dict[str, Workload], size: str, execution: Execution, strategy: Strategy, devices: int, tflops: float
) -> str:
    """Returns a table with one row a stage: parameters, operations of a step, GiB of each device, seconds of a step.

    Args:
        works: What each stage reads in a batch over all devices.
        size: A built-in size.
        execution: How the stages run.
        strategy: How devices share.
        devices: Number of devices.
        tflops: Operations a device does in a second, in 10^12, as sustained; communication is left out.
    """
    rows = []
    for stage, work in works.items():
        cost = device_cost(stage, size, work, execution, strategy, devices)
        used = memory(cost, strategy, devices)
        parts = (used.weights, used.gathered, used.gradients, used.optimizer, used.activations, used.total)
        flops = step_flops(stage, size, work, execution) / 1e12
        seconds = cost.accumulate * cost.flops / (tflops * 1e12)
        recomputed = needed(stage, size, work, replace(execution, gradient_checkpointing=True), strategy, devices)
        counts = (f"{cost.trained / 1e6:.1f}", f"{cost.frozen / 1e6:.0f}", f"{flops:.3g}")
        rows.append((stage, *counts, *(gib(part) for part in parts), recomputed, f"{seconds:.2g}"))
    return aligned_table([STAGE_HEADER, *rows])


def devices_table(works: dict[str, Workload], size: str, execution: Execution, devices: Sequence[int]) -> str:
    """Returns a table of the GiB a device needs by strategy and number of devices, without / with checkpointing."""
    plans = [(strategy, count) for count in devices for strategy in STRATEGIES if count > 1 or strategy == "ddp"]
    header = ["stage", *("1 GPU" if count == 1 else f"{count} x {strategy}" for strategy, count in plans)]
    both = [replace(execution, gradient_checkpointing=checkpointed) for checkpointed in (False, True)]
    rows = [
        [stage, *(" / ".join(needed(stage, size, work, each, *plan) for each in both) for plan in plans)]
        for stage, work in works.items()
    ]
    return aligned_table([header, *rows])


def storage_table(works: dict[str, Workload], size: str, stages: Sequence[str]) -> str:
    """Returns a table of the GiB that one device needs by how frozen weights are stored and activations are kept."""
    stored: dict[str, Execution] = {
        "float32, 32-true": Execution("float32", mixed=False),
        "float32, bf16-mixed": Execution("float32"),
        "bfloat16, bf16-mixed": Execution(),
        "int8, bf16-mixed": Execution(quantization="int8"),
    }
    rows = []
    for name, execution in stored.items():
        both = [replace(execution, gradient_checkpointing=checkpointed) for checkpointed in (False, True)]
        rows.append([name, *(" / ".join(needed(stage, size, works[stage], each) for each in both) for stage in stages)])
    return aligned_table([["frozen weights", *stages], *rows])


def measured_table(experiments: Path, sizes: Sequence[str], setting: str) -> str:
    """Returns a table of what was measured here, in float32, beside what the shapes told.

    Each stage runs in a process of its own, whose peak memory is compared with the sum but for the optimizer's state.
    """
    execution, rows = Execution("float32", mixed=False), []
    for size in sizes:
        for stage, work in workloads(experiments, size, setting).items():
            told = estimate(stage, size, work, execution)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(measure, stage, size, work, execution).result()
            used = memory(told, "ddp", 1)
            expected = used.total - used.optimizer
            kept = [gib(cost.activation_bytes) for cost in (told, found)]
            ratio = f"{expected / found.peak_bytes:.2f}"
            speed = (f"{found.seconds:.2g}", f"{told.flops / found.seconds / 1e9:.0f}")
            rows.append((size, stage, *kept, gib(expected), gib(found.peak_bytes), ratio, *speed))
    header = (
        "size", "stage", "kept, told", "kept, measured", "sum, told", "peak, measured", "told / measured",
        "s a batch", "GFLOP/s",
    )  # fmt: skip
    return aligned_table([header, *rows], texts=2)

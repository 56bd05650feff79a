"""What a grid takes, told before it is run: steps, time and memory of every job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean

from tagi_lightning.costs.lengths import INPUT, INSTRUCTIONS, OUTPUT
from tagi_lightning.costs.scale import GIB, estimate, measure, memory
from tagi_lightning.costs.stage_step import Execution, Workload
from tagi_lightning.durations import duration
from tagi_lightning.markdown import aligned_table
from tagi_lightning.reproduce.configurations import needs_teachers, select
from tagi_lightning.reproduce.jobs import Job
from tagi_lightning.reproduce.plan import BUILT_IN, Grid


@dataclass(frozen=True)
class Shape:
    """What a task set looks like: mean tokens of an instruction by setting, of an input and of an output.

    Attributes:
        instruction: Tokens of an instruction.
        input: Tokens of an input.
        output: Tokens of an output.
        text: Tokens of a document of plain text at most.
        categories: Training categories.
        vocabulary: Tokens of the tokenizer.
    """

    instruction: Mapping[str, int] = field(default_factory=lambda: INSTRUCTIONS)
    input: int = INPUT
    output: int = OUTPUT
    text: int = 1024
    categories: int = 60
    vocabulary: int = 32128


SHAPES = {
    "synthetic": Shape({"def": 12, "def+2pos": 44}, 8, 3, 105, 10, 287),
    "p3": Shape(categories=36),
    "p3-synthetic": Shape({"def": 17, "def+2pos": 17}, 8, 1, 105, 3, 236),
}
"""Task sets that are not like Super-NaturalInstructions."""

REPEATS = 3
"""Measurements, each of a second batch; the quickest is least disturbed by other work."""

TRAINED = 4 + 8
"""Bytes that a weight of the backbone takes beyond itself where it trains: its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Need:
    """What one job takes; None where it cannot be told.

    Attributes:
        steps: Steps of training.
        seconds: Time.
        bytes: Memory.
    """

    steps: int | None = None
    seconds: float | None = None
    bytes: int | None = None


def likeness(job: Job) -> str:
    """Returns the stage of `tagi scale` that a job's step comes nearest to.

    Distillation without teachers is a step like pretrain's; full fine-tuning, one like pretrain-backbone's; one adapter
    for all tasks on concatenated prompts, one like teachers'.
    """
    if job.kind != "distill" or needs_teachers(job.config):
        return job.kind
    if select(job.config, "model.init_args.tagi.reads", "input") == "input":
        return "pretrain"
    return "pretrain-backbone" if trains_backbone(job) else "teachers"


def trains_backbone(job: Job) -> bool:
    """Whether weights of a pretrained backbone train."""
    return bool(select(job.config, "model.init_args.tagi.trained_backbone", "none") != "none")


def workload(job: Job, shape: Shape) -> Workload:
    """Returns what a batch of a job reads."""
    data, config = select(job.config, "data.init_args", {}), job.config
    lengths = (shape.instruction[str(config["setting"])], shape.input, shape.output)
    model = select(config, "model.init_args", {})
    rank = select(model, "tagi.lora.rank", select(model, "lora.rank", 32))
    accumulate = select(config, "trainer.accumulate_grad_batches", 1)
    common = (rank, select(model, "optimizer.name", "none"), accumulate)
    if job.kind == "evaluate":
        return Workload(1, data.get("eval_batch_size", 32), *lengths)
    if job.kind == "pretrain":
        batch, third = data.get("batch_size", 8), min(shape.text, data.get("max_length", 1024)) // 3
        return Workload(batch, batch, third, third, third, *common)
    if job.kind == "pretrain-backbone":
        if data.get("span_corruption") or data.get("prefix_lm"):
            length = data.get("max_length", 1024)
            return Workload(1, data.get("batch_size", 8), 0, round(0.9 * length), round(0.2 * length), *common)
        data = select(data, "tasks.init_args", {})
    tasks = data.get("tasks_per_batch", 4)
    return Workload(tasks, tasks * data.get("instances_per_task", 4), *lengths, *common)


class Estimator:
    """Tells time by earlier jobs of the same kind or two steps with random weights, and memory by shapes."""

    def __init__(self, grid: Grid, seconds: Mapping[str, Sequence[float]], tflops: float) -> None:
        """Takes what is known.

        Args:
            grid: The grid.
            seconds: What finished jobs of each kind took.
            tflops: Operations a GPU sustains in a second, in 10^12; on the CPU, steps are timed.
        """
        self.grid, self.tflops = grid, tflops
        self.seconds = {kind: fmean(values) for kind, values in seconds.items() if values}
        self._costs = cache(estimate)
        self._timed = cache(_timed)

    def need(self, job: Job) -> Need:
        """Returns what a job takes."""
        steps, seconds = job.steps, self.seconds.get(job.kind)
        size = select(job.config, "backbone.name") if self.grid.backbone else self.grid.size
        if job.kind == "data" or size not in BUILT_IN:
            return Need(steps, seconds)
        shape = SHAPES.get(self.grid.taskset, Shape())
        stage, work = likeness(job), workload(job, shape)
        mixed = select(job.config, "trainer.precision") != "32-true"
        teachers = shape.categories if stage == job.kind else 1
        stored = "bfloat16" if select(job.config, "backbone.dtype") == "bfloat16" else "float32"
        execution = Execution(stored, mixed=mixed, teachers=teachers, vocabulary=shape.vocabulary)  # type: ignore[arg-type]
        cost = self._costs(stage, size, work, execution)
        if seconds is None and steps is not None:
            on_cpu = select(job.config, "trainer.accelerator") == "cpu"
            batch = self._timed(stage, size, work, execution) if on_cpu else cost.flops / (self.tflops * 1e12)
            seconds = steps * work.accumulate * batch
        extra = TRAINED * cost.frozen if trains_backbone(job) and stage != "pretrain-backbone" else 0
        return Need(steps, seconds, memory(cost, "ddp", 1).total + extra)


def _timed(stage: str, size: str, work: Workload, execution: Execution) -> float:
    """Returns the seconds of a batch on this CPU."""
    return min(measure(stage, size, work, execution).seconds for _ in range(REPEATS))


def estimate_table(jobs: Sequence[Job], estimator: Estimator, workers: int) -> str:
    """Returns a table of the jobs, those of one name that take the same together, and a line with their sum."""
    groups: dict[tuple[str, Need], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[f"{job.system} {job.kind}", estimator.need(job)].append(job)
    rows, total, unknown, by_steps = [], 0.0, set(), False
    for (name, need), group in groups.items():
        left = [job for job in group if not job.is_done()]
        told = "-" if need.seconds is None else duration(need.seconds)
        gib = "-" if need.bytes is None else f"{need.bytes / GIB:.2f}"
        steps = "-" if need.steps is None else str(need.steps)
        rows.append([name, str(len(left)), str(len(group) - len(left)), steps, told, gib])
        total += len(left) * (need.seconds or 0.0)
        if left and need.seconds is None:
            unknown.add(group[0].kind)
        by_steps |= bool(left and need.seconds) and group[0].kind not in estimator.seconds
    header = ["job", "to run", "done", "steps", "time each", "GiB"]
    line = f"{sum(int(row[1]) for row in rows)} jobs to run, {workers} at a time: about {duration(total / workers)}"
    if unknown:
        line += f", besides {', '.join(sorted(unknown))}, whose time no finished job tells yet"
    if by_steps:
        line += "\nwhere no finished job tells it, the time is that of the steps alone: start, data, validation and "
        line += "pictures come on top"
    return f"{aligned_table([header, *rows])}\n\n{line}"

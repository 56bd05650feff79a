"""What a run takes, told before it starts: memory, time and disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from tagi_lightning.backbones import SIZES
from tagi_lightning.backbones.pretrained import locate
from tagi_lightning.cli.check_data import Lengths, Sample
from tagi_lightning.cli.check_options import Problems
from tagi_lightning.costs.scale import GIB, Cost, measure, memory, optimizer_bytes
from tagi_lightning.costs.scale_report import STRATEGIES, device_cost
from tagi_lightning.costs.stage_step import Execution, Workload
from tagi_lightning.doctor.limits import available_memory
from tagi_lightning.doctor.machine import existing
from tagi_lightning.durations import duration
from tagi_lightning.reproduce.estimate import TRAINED, Shape, likeness, trains_backbone, workload
from tagi_lightning.reproduce.jobs import Job
from tagi_lightning.stages import Stage

TFLOPS = 125.0
"""Operations a GPU sustains in a second, in 10^12, as `tagi scale` has it."""

TIMED_FLOPS = 2e12
"""Operations of the largest batch that is timed on this CPU."""


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        stage: The stage.
        config: Its configuration in plain types.
        devices: Number of devices.
        gpu: Whether they are GPUs.
        sample: What the data look like.
        categories: Training categories.
        vocabulary: Tokens of the tokenizer.
        size: The built-in size whose shape the backbone has; None for any other shape.
    """

    stage: Stage
    config: dict[str, Any]
    devices: int
    gpu: bool
    sample: Sample
    categories: int
    vocabulary: int
    size: str | None

    @property
    def job(self) -> Job:
        """The run as the estimates of `tagi reproduce` take it."""
        return Job(self.stage.stage_name, self.stage.stage_name, self.stage.run, (), "", config=self.config)

    @property
    def strategy(self) -> Any:
        """How devices share the model."""
        named = self.config["trainer"]["strategy"]
        return named if named in STRATEGIES else "ddp"

    def work(self, lengths: Lengths) -> Workload:
        """Returns what a batch over all devices reads at some lengths."""
        setting = self.config["setting"]
        parts = (lengths.input, lengths.output, lengths.text)
        return workload(self.job, Shape({setting: lengths.instruction}, *parts, self.categories, self.vocabulary))

    def execution(self) -> Execution:
        """Returns how the stage runs."""
        backbone = self.config["backbone"]
        return Execution(
            dtype="bfloat16" if backbone["dtype"] == "bfloat16" else "float32",
            quantization=backbone["quantization"],
            gradient_checkpointing=backbone["gradient_checkpointing"],
            mixed=self.config["trainer"]["precision"] == "bf16-mixed",
            teachers=max(1, self.categories),
            vocabulary=self.vocabulary,
        )

    def cost(self, lengths: Lengths) -> Cost | None:
        """Returns what one device needs for a batch; None where the shape is not a built-in one."""
        if self.size is None:
            return None
        return device_cost(
            likeness(self.job), self.size, self.work(lengths), self.execution(), self.strategy, self.devices
        )

    def bytes(self, cost: Cost) -> int:
        """Returns the memory of one device."""
        extra = TRAINED * cost.frozen if trains_backbone(self.job) and likeness(self.job) != "pretrain-backbone" else 0
        return memory(cost, self.strategy, self.devices).total + extra


def backbone_size(stage: Stage) -> str | None:
    """Returns the built-in size whose shape a stage's backbone has, told from its configuration file."""
    name = stage.backbone_config.name
    if name in SIZES:
        return name
    try:
        config = AutoConfig.from_pretrained(locate(name))
    except (OSError, ValueError):  # loading it tells why
        return None
    fits = (size for size, shape in SIZES.items() if all(getattr(config, k, None) == v for k, v in shape.items()))
    return next(fits, None)


def needs(run: Run, problems: Problems) -> Iterator[str]:
    """Yields lines about memory, time and disk; what is not there is a problem.

    Args:
        run: The run.
        problems: Receives what is wrong.
    """
    mean, longest = run.cost(run.sample.mean), run.cost(run.sample.longest)
    if mean is None or longest is None:
        yield f"memory and time: not known beforehand for the shape of {run.stage.backbone_config.name}"
        trained = [parameter for parameter in run.stage.parameters() if parameter.requires_grad]
        state = optimizer_bytes(trained, run.stage.optimizer_config.name)
        yield from disk_line(run, 4 * sum(parameter.numel() for parameter in trained), state, problems)
        return
    yield memory_line(run, run.bytes(mean), run.bytes(longest), problems)
    yield from time_line(run, mean)
    yield from disk_line(run, 4 * mean.trained, mean.optimizer_bytes, problems)


def weights_fit(run: Run, problems: Problems) -> bool:
    """Tells where this machine has no room to put the stage together; run on GPUs, its weights pass here, too."""
    cost, free = run.cost(run.sample.mean), available_memory()
    weights = cost.frozen_bytes + 4 * cost.trained if cost else 0
    if free is None or weights < free:
        return True
    problems.tell(
        f"memory: the weights alone are {weights / GIB:.2f} GiB, and {free / GIB:.2f} are free on this machine; what "
        "the stage reads of earlier ones could not be looked at"
    )
    return False


def memory_line(run: Run, mean: int, longest: int, problems: Problems) -> str:
    """Returns the memory of a batch of mean and of greatest lengths, beside what is free."""
    free = torch.cuda.mem_get_info()[0] if run.gpu else available_memory()
    text = f"about {mean / GIB:.2f} GiB"
    if longest > mean:
        shown, most = (
            ", ".join(f"{name} {value}" for name, value in vars(lengths).items() if value)
            for lengths in (run.sample.mean, run.sample.longest)
        )
        text += f" at mean lengths ({shown} tokens), {longest / GIB:.2f} at the greatest ({most})"
    text += ", beside what the libraries take"
    told = "" if free is None else f"; {free / GIB:.2f} GiB are free on {'each GPU' if run.gpu else 'this machine'}"
    if free is not None and mean > free:
        problems.tell(
            f"memory: {text}{told}; lower data.init_args.tasks_per_batch or batch_size and raise "
            "trainer.accumulate_grad_batches, or set backbone.gradient_checkpointing=true, backbone.dtype=bfloat16 or "
            "backbone.quantization=int8"
        )
    return f"memory: {text}{told}"


def time_line(run: Run, cost: Cost) -> Iterator[str]:
    """Yields the time of training: timed on a CPU with two batches of random numbers, told by operations on a GPU."""
    steps = run.config["trainer"]["max_steps"]
    if run.stage.stage_name == "evaluate" or steps is None or steps < 1:
        return
    batches = steps * cost.accumulate
    if run.gpu:
        seconds, how = cost.flops / (TFLOPS * 1e12), f"at {TFLOPS:.0f} TFLOP/s a GPU"
    elif cost.flops > TIMED_FLOPS or run.bytes(cost) > (available_memory() or 0) // 2:
        yield f"time: {steps} steps of {cost.flops * cost.accumulate / 1e12:.1f} TFLOP; too large to be timed here"
        return
    else:
        assert run.size is not None
        work = run.work(run.sample.mean).share(run.devices)
        seconds = measure(likeness(run.job), run.size, work, run.execution()).seconds
        how = "as two batches took just now"
    yield f"time: {steps} steps, about {duration(batches * seconds)} {how}; validation and start come on top"


def disk_line(run: Run, model: int, optimizer: int, problems: Problems) -> Iterator[str]:
    """Yields what checkpoints and model take: the last, the best where it is kept, one being written, the model.

    Args:
        run: The run.
        model: Bytes of the trained weights.
        optimizer: Bytes of the optimizer's state.
        problems: Receives a lack of room.
    """
    if run.stage.stage_name == "evaluate" or not model:
        return
    validates = run.config["data"]["init_args"].get("val_split", "none") != "none"
    kept = 1 + (run.stage.monitor is not None and validates)
    total = (kept + 1) * (model + optimizer) + model
    place = existing(run.stage.folder)
    free = shutil.disk_usage(place).free
    text = f"about {total / GIB:.2f} GiB of checkpoints and model; {free / GIB:.1f} GiB are free where {place} lies"
    if total > free:
        problems.tell(f"disk: {text}; make room or name another RUN")
    yield f"disk: {text}"

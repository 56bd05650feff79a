"""What the machine offers: devices, precision, threads, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tagi_lightning.doctor.finding import Finding
from tagi_lightning.doctor.limits import PROC, available_memory, cores

GIB = 2**30
LEAST_MEMORY, ENOUGH_MEMORY = 1 * GIB, 4 * GIB
LEAST_DISK, ENOUGH_DISK = 1 * GIB, 10 * GIB
ENOUGH_SHARED = 1 * GIB
"""Free bytes below which a check is a problem, or worth a warning."""

FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Flags of processors that multiply in bfloat16, fastest first."""


def check_devices(proc: Path = PROC) -> Iterator[Finding]:
    """Tells the GPUs and whether they compute in bfloat16; without one, the processor's own flags."""
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{device.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if device.major >= 8 or torch.version.hip:
            yield Finding(f"gpu {index}", "ok", f"{text}, computes in bfloat16")
        else:
            advice = "--trainer.precision=32-true (fp16 overflows in T5)"
            yield Finding(f"gpu {index}", "warning", f"{text}, has no bfloat16", advice)
    if not torch.cuda.device_count():
        yield _without_gpu(proc)
        yield check_processor((proc / "cpuinfo").read_text(encoding="utf-8") if (proc / "cpuinfo").is_file() else "")


def _without_gpu(proc: Path) -> Finding:
    built = torch.version.cuda or torch.version.hip
    if (proc / "driver" / "nvidia").is_dir():
        reason = (
            f"torch, built for CUDA {built}, sees none" if built else f"torch {torch.__version__} is built for CPUs"
        )
        advice = "run nvidia-smi; install the torch that goes with the driver (pytorch.org); see CUDA_VISIBLE_DEVICES"
        return Finding("gpu", "problem", f"this machine has an NVIDIA driver, but {reason}", advice)
    return Finding("gpu", "ok", "none: stages run on the CPU, TRAINER=cpu")


def check_processor(cpuinfo: str) -> Finding:
    """Tells whether bfloat16 is fast on the CPU.

    Args:
        cpuinfo: Linux's /proc/cpuinfo.
    """
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    if fast := [flag for flag in FAST_BFLOAT16 if flag in flags]:
        text = f"multiplies in bfloat16 ({', '.join(fast)}): --trainer.precision=bf16-mixed is faster than 32-true"
    else:
        text = "has no bfloat16 of its own: stay with --trainer.precision=32-true"
    return Finding("processor", "ok", text)


def check_threads(environment: Mapping[str, str], available: float, used: int) -> Finding:
    """Compares the threads that torch takes with the cores there are.

    Args:
        environment: The environment's variables.
        available: Cores this process may keep busy.
        used: Threads torch computes with.
    """
    asked = environment.get("OMP_NUM_THREADS")
    named = f"OMP_NUM_THREADS={asked}" if asked else "OMP_NUM_THREADS is not set"
    text = f"torch computes with {used} on {available:g} cores; {named}"
    most = max(1, int(available))
    if used > most:
        return Finding("threads", "warning", f"{text}: they wait for each other", f"export OMP_NUM_THREADS={most}")
    if 2 * used < most and not torch.cuda.is_available():
        return Finding("threads", "warning", f"{text}: most cores stay idle", f"export OMP_NUM_THREADS={most}")
    return Finding("threads", "ok", text)


def check_memory(free: int | None) -> Finding:
    """Tells the memory that is left.

    Args:
        free: Bytes; None where the system does not say.
    """
    if free is None:
        return Finding("memory", "ok", "this system does not tell how much is free")
    text = f"{free / GIB:.1f} GiB may still be taken"
    if free < LEAST_MEMORY:
        return Finding("memory", "problem", text, "end other processes, or ask for a larger limit; tiny needs 1 GiB")
    if free < ENOUGH_MEMORY:
        return Finding("memory", "warning", text, "sizes up to small; `tagi scale` tells what others need")
    return Finding("memory", "ok", text)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Tells where the processes of a data loader have too little memory to share."""
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < ENOUGH_SHARED:
        text = f"{free / 2**20:.0f} MiB in {folder}, through which loader processes pass batches"
        advice = "stay with --data.init_args.num_workers=0, or give the container more (docker: --shm-size)"
        yield Finding("shared memory", "warning", text, advice)


def existing(path: Path) -> Path:
    """Returns `path`, or the nearest folder above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def check_disk(name: str, folder: Path, free: int | None = None) -> Finding:
    """Tells whether there is room to write in a folder, which need not be there yet.

    Args:
        name: What the folder is for.
        folder: The folder.
        free: Bytes free; None asks the system.
    """
    place = existing(folder)
    check = f"disk, {name}"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding(check, "problem", f"{place} cannot be written to", f"name another folder: --{name} FOLDER")
    free = shutil.disk_usage(place).free if free is None else free
    if hasattr(os, "statvfs") and (system := os.statvfs(place)).f_files and not system.f_favail:
        return Finding(check, "problem", f"no more files fit where {folder} lies", "remove files there")
    text = f"{free / GIB:.1f} GiB free where {folder} lies"
    if free < LEAST_DISK:
        return Finding(check, "problem", text, "make room: a stage keeps two checkpoints and a model")
    if free < ENOUGH_DISK:
        return Finding(check, "warning", text, "enough for small models; `tagi check` tells what a run needs")
    return Finding(check, "ok", text)


def check_machine(folders: Mapping[str, Path]) -> Sequence[Finding]:
    """Runs all checks of the machine.

    Args:
        folders: Folders that are written to, by the option that names them.
    """
    return [
        *check_devices(),
        check_threads(os.environ, cores(), torch.get_num_threads()),
        check_memory(available_memory()),
        *check_shared_memory(),
        *(check_disk(name, folder) for name, folder in folders.items()),
    ]

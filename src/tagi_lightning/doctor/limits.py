"""What this process may use: cores and memory, within the limits of its control groups (Linux, versions 1 and 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def cores(cgroups: Path = CGROUPS, proc: Path = PROC) -> float:
    """Returns the cores this process may keep busy: those it may run on, or the share of time it is given."""
    there = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _folders(cgroups, proc, "cpu"):
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text(encoding="ascii").split()[:2]
        elif (file := folder / "cpu.cfs_quota_us").is_file():
            quota, period = (_text(file), _text(folder / "cpu.cfs_period_us"))
        else:
            continue
        if quota not in ("max", "-1"):
            there = min(there, int(quota) / int(period))
    return there


def available_memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> int | None:
    """Returns the bytes this process may still take before it is killed; None where the system does not say."""
    if not (proc / "meminfo").is_file():
        return None
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    least = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    for folder in _folders(cgroups, proc, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if (folder / limit).is_file() and _text(folder / limit) != "max" and (folder / used).is_file():
                # what is cached of files is given back where memory is short
                held = int(_text(folder / used)) - _statistic(folder / "memory.stat", cache)
                least = min(least, int(_text(folder / limit)) - held)
    return max(0, least)


def _folders(cgroups: Path, proc: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control group and of those around it, in both versions."""
    membership = proc / "self" / "cgroup"
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = cgroups
        elif controller in controllers.split(","):
            top = cgroups / controller
        else:
            continue
        own = top / path.lstrip("/")
        # inside a container the path may be the one outside, and the folder here is the group's own
        yield from (folder for folder in (own, *own.parents) if folder == top or top in folder.parents)


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()


def _statistic(file: Path, name: str) -> int:
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)

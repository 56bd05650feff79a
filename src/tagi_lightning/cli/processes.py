"""The processes of several devices: one that ends ends the others, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

FIRST = "TAGI_FIRST_PROCESS"
"""Environment variable that tells the other devices' processes the id of the first one, which started them."""

STOPPED = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
"""Exit codes of a process that was asked to end; all devices stop at the same batch, the first may have to write."""

POLL_SECONDS, PATIENCE, PATIENCE_AFTER_SIGNAL = 1.0, 10.0, 45.0
"""How often processes are looked for, and how long they may take to end by themselves once another one has."""


class DeviceError(ChildProcessError):
    """The process of another device has ended."""


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process for each further device of this machine, as Lightning does, and watches over all of them.

    Lightning's own launcher kills the first process without a word it can be known by, even while it writes its last
    checkpoint, and leaves the others waiting for a first one that was killed.
    """

    _is_watched = False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Starts the processes, then calls `function`.

        Raises:
            DeviceError: If another device's process ended, so that this one could not go on.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[FIRST] = str(os.getpid())
            self._call_children_scripts()
        if not self._is_watched and (self.procs or self.first):
            self._is_watched = True
            threading.Thread(target=self._watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not (ended := self._wait_for_end()):
                raise
            raise DeviceError(ended) from error

    @property
    def first(self) -> int | None:
        """Id of the process that started this one for its device."""
        first = int(os.environ.get(FIRST, 0))
        return first if first and first != os.getpid() else None

    def ended(self) -> tuple[str, bool] | None:
        """Returns what to say of a process that ended before its time, and whether it had been asked to."""
        if self.first and os.getppid() != self.first:
            return f"the first device's process ({self.first}) has ended, and this one ends with it", False
        for rank, process in enumerate(self.procs, start=1):
            if process.poll():
                return _describe(rank, process), process.returncode in STOPPED
        return None

    def _wait_for_end(self) -> str | None:
        """Returns what to say of a process that has ended, which may show a moment after what it breaks."""
        end = time.monotonic() + 3 * POLL_SECONDS
        while not (found := self.ended()) and (self.procs or self.first) and time.monotonic() < end:
            time.sleep(0.1)
        return found[0] if found else None

    def _watch(self) -> None:
        """Ends all once one has ended before its time and this one does not come to an end by itself."""
        while not (found := self.ended()):
            if self.procs and all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(POLL_SECONDS)
        told, was_asked = found
        time.sleep(PATIENCE_AFTER_SIGNAL if was_asked else PATIENCE)
        print(f"tagi: {told}", file=sys.stderr, flush=True)
        for process in self.procs:
            process.kill()
        os._exit(1)


def _describe(rank: int, process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return (
        f"the process of device {rank} ({process.pid}) {how}, and the others end with it; the last checkpoint counts, "
        "the same command goes on"
    )


def watch(trainer: L.Trainer) -> None:
    """Puts the watching launcher in the place of Lightning's, where the trainer would start processes."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = WatchedLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )

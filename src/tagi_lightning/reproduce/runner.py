"""Runs jobs as processes: each after those it needs, several at a time, the rest going on where one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tagi_lightning.durations import duration
from tagi_lightning.reproduce.jobs import Job

Launch = Callable[[Job], "subprocess.Popen[bytes]"]
"""Starts a job's process, in a process group of its own."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that are passed on to the running jobs."""

PAUSE = 0.05
"""Seconds between two looks at the running jobs."""


def launcher(workers: int) -> Launch:
    """Returns what starts `tagi` with this interpreter, the processor's cores shared among `workers` processes."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

    def launch(job: Job) -> subprocess.Popen[bytes]:
        with job.log.open("wb") as log:
            command = [sys.executable, "-m", "tagi_lightning.cli", *job.command]
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    return launch


@dataclass
class Outcome:
    """How a grid ended.

    Attributes:
        skipped: Jobs that were done earlier.
        done: Jobs that were done now.
        failed: Jobs that failed, with their exit codes.
        blocked: Jobs that were never started, with the job they would have needed.
        interrupted: The signal that ended it; None otherwise.
        stopped: Jobs that the signal ended.
    """

    skipped: list[Job] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    interrupted: int | None = None
    stopped: list[Job] = field(default_factory=list)


class Runner:
    """Runs the jobs of one grid."""

    def __init__(
        self,
        jobs: Sequence[Job],
        launch: Launch,
        workers: int = 1,
        seconds: Mapping[str, Sequence[float]] | None = None,
        tell: Callable[[str], Any] = print,
    ) -> None:
        """Takes the jobs.

        Args:
            jobs: The jobs, each after those it needs.
            launch: Starts a job's process.
            workers: Jobs at a time.
            seconds: What jobs of each kind have taken earlier.
            tell: Receives one line for every job that starts or ends.
        """
        self.jobs, self.launch, self.workers, self.tell = list(jobs), launch, workers, tell
        self.outcome = Outcome()
        self._seconds = {kind: deque(values, maxlen=20) for kind, values in (seconds or {}).items()}
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
        self._waiting: dict[str, Job] = {}
        self._started = time.monotonic()

    def run(self) -> Outcome:
        """Runs all jobs that are not done; returns once none is left or a signal has ended the running ones."""
        self._skip()
        with self._passing_signals():
            while (self._waiting and self.outcome.interrupted is None) or self._running:
                self._collect()
                self._start()
                time.sleep(PAUSE)
        return self.outcome

    def _skip(self) -> None:
        """Sets aside what was done earlier; whatever follows a job that runs now runs too, and looks for itself."""
        for job in self.jobs:
            if job.is_done() and not any(need in self._waiting for need in job.needs):
                self.outcome.skipped.append(job)
            else:
                self._waiting[job.name] = job

    def _start(self) -> None:
        if self.outcome.interrupted is not None:
            return
        for job in list(self._waiting.values()):
            if len(self._running) >= self.workers:
                return
            if blocker := next((n for n in job.needs if n in self.outcome.failed or n in self.outcome.blocked), None):
                del self._waiting[job.name]
                self.outcome.blocked[job.name] = self.outcome.blocked.get(blocker, blocker)
            elif not any(need in self._waiting or need in self._running for need in job.needs):
                del self._waiting[job.name]
                job.prepare()
                self._running[job.name] = (job, self.launch(job), time.monotonic())
                self._line(f"started {job.name}")

    def _collect(self) -> None:
        for name, (job, process, start) in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[name]
            seconds = time.monotonic() - start
            if self.outcome.interrupted is not None and code != 0:
                self.outcome.stopped.append(job)
                self._line(f"interrupted {name}")
            elif code != 0:
                self.outcome.failed[name] = code
                self._line(f"FAILED {name} after {duration(seconds)}: {job.log}")
            else:
                job.finish(seconds)
                self.outcome.done.append(job)
                self._seconds.setdefault(job.kind, deque(maxlen=20)).append(seconds)
                self._line(f"finished {name} in {duration(seconds)}")

    def _line(self, what: str) -> None:
        outcome = self.outcome
        counts = f"{len(outcome.skipped) + len(outcome.done)} done, {len(self._running)} running"
        lost = len(outcome.failed) + len(outcome.blocked)
        counts += f", {len(self._waiting)} left" + (f", {lost} failed" if lost else "")
        self.tell(f"[{duration(time.monotonic() - self._started)}] {counts}, {self.left()}: {what}")

    def left(self) -> str:
        """Returns the time to go, told by the finished jobs of the same kinds."""
        kinds = [job.kind for job in self._waiting.values()]
        passed = {job.kind: time.monotonic() - start for job, _, start in self._running.values()}
        known = {kind: fmean(values) for kind, values in self._seconds.items() if values}
        seconds = sum(known.get(kind, 0.0) for kind in kinds)
        seconds += sum(max(0.0, known.get(kind, 0.0) - since) for kind, since in passed.items())
        unknown = {*kinds, *passed} - known.keys()
        if unknown and not seconds:
            return "time to go not known yet"
        return f"{'more than' if unknown else 'about'} {duration(seconds / self.workers)} to go"

    @contextmanager
    def _passing_signals(self) -> Iterator[None]:
        """Passes signals on to the running jobs, each with all its own processes."""

        def handle(number: int, frame: Any) -> None:
            self.outcome.interrupted = number
            self._send(number)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            self._send(signal.SIGTERM)  # some still run where an error, of a full disk for instance, ended the loop
            for number, handler in before.items():
                signal.signal(number, handler)

    def _send(self, number: int) -> None:
        for _, process, _ in list(self._running.values()):
            if process.poll() is None:
                os.killpg(process.pid, number)


def last_words(job: Job) -> str:
    """Returns the last line of a job's output."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n") if job.log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

"""SIGTERM, SIGINT and SIGUSR1: the first asks to stop where nothing is lost, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What schedulers (SIGTERM, SIGUSR1) and terminals (SIGINT) send."""

ECHO_SECONDS = 1.0
"""Signals this soon after the first are the same request: make, srun and terminals send it to all, and pass it on."""


class Preempted(BaseException):
    """The process was asked to end; what is kept is whole."""

    def __init__(self, number: int) -> None:
        """Takes the signal's number."""
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on")
        self.exit_code = 128 + number


class Preemption:
    """Answers the signals of this process.

    Attributes:
        deferred: Whether a signal waits for `check`, as in a training loop, which has its own places to stop; anywhere
            else it raises `Preempted` at once, as control-C does in Python.
    """

    def __init__(self) -> None:
        """Answers nothing yet."""
        self.deferred = False
        self._received: int | None = None
        self._since = 0.0
        self._process = 0
        self._former: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answers signals until the context ends, in the main thread; an outer context goes on answering."""
        if self._former or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.deferred, self._received, self._process = False, None, os.getpid()
        self._former = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        try:
            yield
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former = {}

    def install(self) -> None:
        """Takes the signals (back) from others, such as Lightning, which saves in the middle of a batch."""
        for number in self._former:
            signal.signal(number, self._answer)

    def request(self, number: int = signal.SIGTERM) -> None:
        """Notes a signal that came to another process of the same run."""
        self._received = self._received or number

    def check(self) -> None:
        """Raises `Preempted` if a signal has come."""
        if self._received is not None:
            raise Preempted(self._received)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; a second one, or one to a child process, does what it does by default."""
        first = self._received is None
        if os.getpid() != self._process or not (first or time.monotonic() - self._since < ECHO_SECONDS):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not first:
            return
        self._received, self._since = number, time.monotonic()
        told = f"{signal.Signals(number).name}: stopping {'at the next batch' if self.deferred else 'now'}"
        os.write(2, f"{told}; again ends at once\n".encode())  # print may be in the middle of a line
        if not self.deferred:
            raise Preempted(number)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Begins child processes that these signals do not reach; to this one they come when the context ends."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


preemption = Preemption()
"""The answers of this process."""

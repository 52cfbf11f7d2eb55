"""Signals that ask a command to stop: SIGTERM, of a shutdown or a scheduler, and SIGUSR1, SLURM's warning."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slicebook.errors import StoppedBySignalError

NAMES = tuple(name for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows has no SIGUSR1


@dataclass
class StopRequest:
    """Whether the process was asked to stop; `signal` is the name of the signal."""

    signal: str | None = None


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Record the signals while the block runs; it looks at the record, and the process does not end."""
    request = StopRequest()

    def record(number: int, _: Any) -> None:
        request.signal = signal.Signals(number).name

    with _handled_by(record):
        yield request


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise the error at a signal while the block runs, as Python raises KeyboardInterrupt at Ctrl-C."""

    def interrupt(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        raise StoppedBySignalError(f"stopped by {name}; repeat the command to continue")

    with _handled_by(interrupt):
        yield


def ignore_signals() -> None:
    """Leave the signals to the parent process, which ends this one."""
    for name in NAMES:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle the signals while the block runs; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(getattr(signal, name), handler) for name in NAMES}
    try:
        yield
    finally:
        for name, former in before.items():
            signal.signal(getattr(signal, name), former if former is not None else signal.SIG_DFL)

"""Progress and cancellation of a computation, without a word about either in what it calls.

A hook on every network counts those that are evaluated once per step, and stops the computation between two
layers. It changes no number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import Module, register_module_forward_pre_hook

from slicebook.errors import SlicebookError
from slicebook.models.flow_decoder import FlowDecoder
from slicebook.models.prior import Prior
from slicebook.models.tokenizer import Tokenizer

COUNTED = (Prior, FlowDecoder, Tokenizer)


class StoppedError(SlicebookError, RuntimeError):
    """The user stopped a computation."""


class Job:
    """One computation.

    Args:
        steps: Expected number of evaluations of the networks in `COUNTED`.
        report: Called with the share that is done, from 0 to 1.
    """

    def __init__(self, steps: int, report: Callable[[float], object] = lambda _: None) -> None:
        self.steps, self.report = max(1, steps), report
        self.done, self.ended = 0, False
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the computation end at its next layer."""
        self._stopped.set()

    def check(self) -> None:
        """Raise `StoppedError` after `stop`."""
        if self._stopped.is_set():
            raise StoppedError("Stopped.")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count and watch the networks that this thread evaluates.

        Raises:
            StoppedError: `stop` was called.
        """
        thread = threading.get_ident()

        def hook(module: Module, _: Any) -> None:
            if threading.get_ident() != thread:
                return
            self.check()
            if isinstance(module, COUNTED):
                self.done += 1
                self.report(min(1.0, self.done / self.steps))

        handle = register_module_forward_pre_hook(hook)
        try:
            self.check()
            yield
        finally:
            self.ended = True
            handle.remove()

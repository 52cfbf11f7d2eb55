"""One batch over several processes: which slices are whose, their random numbers, and sums over all of them.

A training gives the same result with any number of processes, up to the rounding of sums. So everything that
depends on a whole batch (codebooks, batch norm, ratios of sums in a loss) is reduced over the processes that
share it. The trainer says which part of the batch a process has, by `computing`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from slicebook.errors import ProcessLostError, SlicebookError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The slices of a batch that one process has.

    A batch of fewer slices than processes leaves some without any. They compute the batch's first slice,
    which does not count, because every process must take part in every reduction.

    Attributes:
        start: Index in the batch of the first of its slices.
        count: Number of its slices; 0 if the one that it computes does not count.
        total: Number of slices of the whole batch.
        processes: Number of processes that share the batch.
    """

    start: int
    count: int
    total: int
    processes: int = 1

    @classmethod
    def whole(cls, total: int) -> Part:
        """All slices, on one process."""
        return cls(0, total, total)

    @classmethod
    def of(cls, total: int, rank: int, processes: int) -> Part:
        """The part of a rank; sizes differ by one slice at most."""
        start, end = total * rank // processes, total * (rank + 1) // processes
        return cls(start if end > start else 0, end - start, total, processes)

    @property
    def rows(self) -> slice:
        """Rows of the whole batch that this process computes."""
        return slice(self.start, self.start + max(self.count, 1))

    @property
    def weight(self) -> float:
        """Factor of a mean over these slices, so that the mean over processes is that of the batch."""
        return self.processes * self.count / self.total

    def pick(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's among items of the whole batch."""
        return items[self.rows]

    def scaled(self, rows: int) -> Part:
        """Return the same part in units of vectors, of which this process computes `rows`."""
        each = rows // max(self.count, 1)
        return Part(self.start * each, self.count * each, self.total * each, self.processes)


_current: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def computing(part: Part) -> Iterator[None]:
    """Compute a part of a batch while the block runs: sums are over all processes that share it."""
    token = _current.set(part)
    try:
        yield
    finally:
        _current.reset(token)


def current_part(rows: int) -> Part:
    """Return the part that is computed, or, outside of `computing`, `rows` rows of this process alone."""
    return _current.get() or Part.whole(rows)


def initialized() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def even_part(rows: int) -> Part:
    """Return the part that is computed, in units of vectors; outside of `computing`, as many on each process.

    For a codebook in someone's own training loop: it must learn the same on all processes.
    """
    part = _current.get()
    if part is not None:
        return part.scaled(rows)
    if not initialized():
        return Part.whole(rows)
    rank, processes = dist.get_rank(), dist.get_world_size()
    return Part(rank * rows, rows, rows * processes, processes)


def summed(values: Tensor, part: Part) -> Tensor:
    """Return the sum over the processes that share a batch, with its gradient; equal bits on each of them.

    What a process computed of a slice that does not count is left out.
    """
    if part.processes == 1:
        return values
    result: Tensor = cast(Any, _Sum).apply(values, part.count > 0)
    return result


class _Sum(torch.autograd.Function):
    """All-reduce, forward and backward: each process's loss depends on the values of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, counts: bool) -> Tensor:
        ctx.counts = counts
        total = values.contiguous().clone() if counts else torch.zeros_like(values).contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return (total if ctx.counts else torch.zeros_like(total)), None


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of one step, and seed torch's global one; the same on every process.

    Depends on (seed, step) only, so a resumed training uses the same random numbers.
    """
    own = _mixed(seed, step)
    torch.manual_seed(own)
    return torch.Generator().manual_seed(own)


def slice_generators(seed: int, step: int, part: Part) -> list[torch.Generator]:
    """Return a random generator per slice of a part of a batch, for large draws such as noise.

    A slice gets the same numbers on whichever process it is.
    """
    rows = range(part.total)[part.rows]
    return [torch.Generator().manual_seed(_mixed(seed, step) + 1 + row) for row in rows]


def validation_generators(seed: int, indices: Tensor) -> list[torch.Generator]:
    """Return a random generator per slice, by its index, so that every validation draws the same."""
    return [torch.Generator().manual_seed(_mixed(seed, index)) for index in indices.tolist()]


def _mixed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) * 4096 % 2**63


class Arriving:
    """Numbers on their way from a device to the host; `read` waits for them, and for nothing newer."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=True)
        self._event: Any = None
        if values.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch lacks it
            self._event.record()

    def read(self) -> list[float]:
        """Return the numbers."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.tolist()]


class Exchange:
    """What processes tell each other after each batch: one sum of a few numbers.

    The scores of the batch are there at once. The clock of rank 0, and whether any process was asked to stop,
    are those of the exchange before, so that no process waits for its device. All processes have the same
    numbers.

    Attributes:
        asked: Whether a process was asked to stop.
        elapsed: Seconds on the clock of rank 0.
    """

    def __init__(self, rank: int, elapsed: float) -> None:
        self.asked, self.elapsed = False, elapsed
        self._rank = rank
        self._arriving: Arriving | None = None

    def __call__(
        self, scores: Mapping[str, Tensor], part: Part, *, asked: bool, elapsed: float
    ) -> dict[str, Tensor]:
        """Tell the others, and return the means of the scores over the whole batch."""
        if part.processes == 1:
            self.asked, self.elapsed = asked, elapsed
            return dict(scores)
        if self._arriving is not None:
            votes, self.elapsed = self._arriving.read()
            self.asked = votes > 0
        values = torch.stack([value.detach().float() for value in scores.values()])
        # Not times 0: what does not count may be NaN.
        own = values * (part.count / part.total) if part.count else torch.zeros_like(values)
        told = torch.tensor([float(asked), elapsed if self._rank == 0 else 0.0])
        total = torch.cat([told.to(own.device, non_blocking=True), own])
        dist.all_reduce(total)
        self._arriving = Arriving(total[:2])
        return dict(zip(scores, total[2:], strict=True))


class Watch:
    """Notices within a minute that another process of the group has died, failed or stopped moving.

    A thread takes part in a small sum every few seconds, in a group of its own that works on the host, while
    the process waits for its device or for the others. Use it as a context manager around what processes do
    together: there, a process that has lost another raises `ProcessLostError`; one that cannot, because it
    waits, ends with status 1 after a few seconds.

    Args:
        where: The run, for the message.
        interval: Seconds between two sums.
        patience: Seconds after which a process that does not answer counts as lost, and after which one that
            has lost another is ended.
    """

    RUNNING, LEFT, FAILED = 0, 1, 2

    def __init__(self, where: str, *, interval: float = 5, patience: tuple[float, float] = (45, 10)) -> None:
        self.message = (
            f"{where}: another process of this training has ended or does not answer (its own message says "
            "why, unless it was killed); the last state is kept: repeat the command to continue"
        )
        self.interval, (self.silence, self.grace) = interval, patience
        self._state, self._leaving, self._lost = self.RUNNING, threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.silence))
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if isinstance(error, RuntimeError) and not isinstance(error, SlicebookError):
            self._lost.wait(2 * self.interval)  # was it a collective without the other process?
        self._state = self.LEFT if error is None else self.FAILED
        self._leaving.set()
        self._thread.join(2 * self.interval)
        if self._lost.is_set() and isinstance(error, Exception) and not isinstance(error, SlicebookError):
            raise ProcessLostError(self.message) from error

    def _watch(self) -> None:
        while True:
            self._leaving.wait(self.interval)
            own = self._state
            state = torch.tensor(own)
            try:
                dist.all_reduce(state, op=dist.ReduceOp.MAX, group=self._group)
            except RuntimeError:
                state.fill_(self.FAILED)
            if int(state) == self.FAILED and own != self.FAILED:
                self._lost.set()
                if not self._leaving.wait(self.grace):
                    print(f"slicebook: {self.message}", file=sys.stderr, flush=True)
                    os._exit(1)
            if int(state) != self.RUNNING:
                return

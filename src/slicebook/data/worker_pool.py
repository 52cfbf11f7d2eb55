"""Apply a function to many items in several processes, and take the results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import TypeVar

from slicebook.errors import DataError
from slicebook.signals import ignore_signals

IN_FLIGHT = 2  # items per process that are begun or done before their result is taken

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the result of each item, in the order of the items; few results are in memory.

    An error of the function is raised where its result would be yielded, as without processes.

    Args:
        function: Of a module, or a partial of such a function, so that another process can import it.
        items: The arguments.
        workers: Number of processes; 0 computes each result in this process when it is taken.

    Raises:
        DataError: A process ended.
    """
    if not workers:
        yield from map(function, items)
        return
    left = iter(items)
    # A new interpreter per process: a fork of a process with threads, such as those of torch, may hang.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        begun: deque[Future[R]] = deque(
            executor.submit(function, item) for item in islice(left, IN_FLIGHT * workers)
        )
        while begun:
            result = begun.popleft().result()
            begun.extend(executor.submit(function, item) for item in islice(left, 1))
            yield result
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads volumes ended, often because memory is full; repeat the command with fewer "
            "--workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave signals to the main process, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

"""Out of memory: which errors say so, how much was asked for, and how large a batch fits."""

from __future__ import annotations

import gc
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slicebook.errors import OutOfMemoryError, SlicebookError

_SIGNS = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.I)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.I)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@contextmanager
def explained(where: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that failed, on a CPU or a GPU, into one line with what was asked for and advice.

    Args:
        where: What ran.
        advice: Called once what the failed computation held is free again.

    Raises:
        OutOfMemoryError: There was too little memory for the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, SlicebookError) or not is_out_of_memory(error):
            raise
        asked = asked_bytes(error)
        amount = "an allocation failed" if asked is None else f"{_amount(asked)} more were asked for"
        release(error)
        raise OutOfMemoryError(f"{where}: out of memory: {amount}; {advice()}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is Python's, NumPy's, PyTorch's or CUDA's of an allocation that failed."""
    return isinstance(error, MemoryError) or bool(_SIGNS.search(str(error)))


def asked_bytes(error: Exception) -> int | None:
    """Return the size of the allocation that failed, as far as the error tells."""
    found = _ASKED.search(str(error))
    return found and int(float(found[1]) * _UNITS[found[2][0].lower()])


def release(error: Exception) -> None:
    """Free what the frames of an error hold, such as the activations of a network."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")  # imported by what needs it
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def batch_advice(setting: str, failed: int, attempt: Callable[[int], object], processes: int = 1) -> str:
    """Return which batch fits where one did not: of half its slices, of a quarter, and so on.

    Args:
        setting: Name of the batch size.
        failed: Number of slices of the batch that did not fit.
        attempt: Computes as many of its slices as it is given.
        processes: Number of processes that share a batch; several must all compute, so nothing is tried.
    """
    found = f"the batch has {failed} slices"
    if processes > 1:
        return (
            f"{found} on {processes} processes; which number fits was not tried; repeat the command with a "
            f"smaller one, such as {setting}={max(processes, failed // 2)}"
        )
    size = failed // 2
    while size and not _fits(attempt, size):
        size //= 2
    if not size:
        return f"{found}, and not even one fits; make the model smaller, or use another --device"
    return f"{found}; {size} were tried and fit: repeat the command with {setting}={size}"


def _fits(attempt: Callable[[int], object], size: int) -> bool:
    try:
        attempt(size)
    except (MemoryError, RuntimeError) as error:  # RuntimeError: libraries name their failures in many ways
        release(error)
        return False
    return True


def _amount(count: int) -> str:
    unit = next((unit for unit in "tgmk" if count >= _UNITS[unit]), "b")
    return f"{count} bytes" if unit == "b" else f"{count / _UNITS[unit]:.1f} {unit.upper()}iB"

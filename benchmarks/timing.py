"""Build contenders on a device, run them in turns, and measure the memory of a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import machine
import torch
from peers import Step

FEWEST_TURNS = 3


def build(
    makers: Mapping[str, Callable[..., Any]], *size: int, device: torch.device = machine.CPU
) -> tuple[dict[str, Any], dict[str, str]]:
    """Build every contender that is installed; return the reasons for the others."""
    made, missing = {}, {}
    for name, make in makers.items():
        try:
            with device:
                made[name] = make(*size)
        except ImportError as error:  # noqa: PERF203 (four contenders)
            missing[name] = f"not installed: {error.name or str(error).splitlines()[0]}"
    return made, missing


def take_turns(
    steps: Mapping[str, Step], seconds: float, *, against: str | None = None
) -> dict[str, dict[str, Any]]:
    """Run steps in turns until the time is used up, after an unmeasured warm-up of each.

    Returns:
        Per step: median seconds, lowest and highest seconds, number of turns, and with `against` the median
        over turns of the ratio of its seconds to those of `against`.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    wait()
    end = time.perf_counter() + seconds
    turn = 0
    while turn < FEWEST_TURNS or time.perf_counter() < end:
        names = list(steps)
        turn += 1
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            steps[name]()
            wait()
            taken[name].append(time.perf_counter() - started)
    summary: dict[str, dict[str, Any]] = {}
    for name, times in taken.items():
        summary[name] = {
            "seconds": statistics.median(times),
            "range": [min(times), max(times)],
            "turns": turn,
        }
        if against:
            summary[name]["ratio"] = statistics.median(
                a / b for a, b in zip(times, taken[against], strict=True)
            )
    return summary


def wait() -> None:
    """Wait for a GPU that this process has used."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch lacks it
        torch.cuda.synchronize()


def gpu_memory(step: Step) -> float:
    """Return by how many MiB a step raises the peak of the GPU memory that tensors use."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20

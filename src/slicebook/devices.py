"""Which device computes, how precisely, and this process's place among those that train together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from slicebook.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {
    "cpu": ("32-true", "bf16-mixed"),
    "cuda": ("32-true", "bf16-mixed", "16-mixed"),
    "mps": ("32-true",),
}
"""By the type of the device, the precisions that all trainings work in."""
MEASURING_SECONDS = 0.5  # about, in which `fastest_precision` times what it compares
# bf16 must take less than this share of float32's time: a tie goes to the exact one.
MARGIN = 0.95
HOPELESS = 3.0  # times as slow at the first try: not tried again


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: No such name, or this machine lacks the device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is not known; wanted one of {', '.join(DEVICES)}")
    if name == "auto":
        name = next(known for known, there in present.items() if there)
    if not present[name]:
        raise ConfigError(f"device {name}: PyTorch finds none on this machine; use --device cpu")
    if name == "cpu":
        _leave_a_core_free()
    return torch.device(name)


def _leave_a_core_free() -> None:
    """Use at most one thread fewer than this process has cores, unless OMP_NUM_THREADS is set.

    A smaller number, chosen by torch or by a call of `torch.set_num_threads`, stays as it is. OpenMP threads
    spin while they wait for each other. If another process takes one of their cores, all wait for it: two
    threads on two cores then train at a quarter of their speed or far less, one thread nearly unchanged
    (`benchmarks/threads.py`).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() >= cores:
        torch.set_num_threads(max(1, cores - 1))


def choose_precision(name: str, device: torch.device) -> str | None:
    """Return a precision in Fabric's words; None where `auto` must be measured (`fastest_precision`).

    Raises:
        ConfigError: The precision is not known, or does not work on this device.
    """
    known = PRECISIONS[device.type]
    if name == "auto":
        if device.type == "cpu":
            # A CPU with bf16 instructions may still run the model faster in float32, so it is measured.
            return None
        # A GPU that multiplies bf16 has units for it, with several times the throughput of float32: no need
        # to measure. One that emulates it has none.
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "32-true"
    if name not in known:
        raise ConfigError(
            f"precision {name} does not work on device {device.type}; wanted auto or one of "
            f"{', '.join(known)}"
        )
    return name


def fastest_precision(
    step: Callable[[], object],
    device: torch.device,
    *,
    broadcast: Callable[[Any], Any] | None = None,
) -> tuple[str, dict[str, float]]:
    """Run a step in float32 and in bf16-mixed by turns, for about half a second, and compare.

    Args:
        step: What the model will do many times, such as a training step; this sets its autocast.
        device: Where it computes.
        broadcast: Returns rank 0's value on every process, where several run the step together.

    Returns:
        The faster precision, and the seconds of a step in each.
    """
    broadcast = broadcast or (lambda value: value)

    def timed(precision: str) -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    names = ("32-true", "bf16-mixed")
    first = broadcast({name: timed(name) for name in names})
    if first["bf16-mixed"] > HOPELESS * first["32-true"] + MEASURING_SECONDS:  # emulated
        return "32-true", first
    turns = max(2, min(20, round(MEASURING_SECONDS / sum(first.values()))))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            taken[name].append(timed(name))
    # The shortest time is the one in which nothing else had the processor.
    seconds: dict[str, float] = broadcast({name: min(times) for name, times in taken.items()})
    faster = seconds["bf16-mixed"] < MARGIN * seconds["32-true"]
    return "bf16-mixed" if faster else "32-true", seconds


class Launched(Fabric):
    """A Fabric that knows whether its precision is still to be measured.

    Attributes:
        undecided: Its `auto` precision is float32 until `decided` puts another in its place.
    """

    undecided: bool = False

    def decided(self, precision: str) -> Launched:
        """Return the same place among the processes, with this precision."""
        return launch(self.device.type, precision)


def launch(device: str = "auto", precision: str = "auto") -> Launched:
    """Take one device, or this process's place among those that `torchrun` or SLURM started.

    Raises:
        ConfigError: A device or precision that is not known or not here.
    """
    chosen = choose_device(device)
    settled = choose_precision(precision, chosen)
    here, nodes = _processes()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs the precision at each start
    try:
        fabric = Launched(
            accelerator=chosen.type,
            devices=here,
            num_nodes=nodes,
            # No buffer needs to be sent in each step: all are computed alike, or reduced (`distributed`).
            strategy=DDPStrategy(forward_sync_buffers=False) if here * nodes > 1 else "auto",
            precision=settled or "32-true",  # type: ignore[arg-type]  # Fabric names what it knows
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"device {device}, precision {precision}: {error}") from error
    fabric.launch()
    fabric.undecided = settled is None
    return fabric


def is_first_process() -> bool:
    """Whether this process is the only one or rank 0, known before it is launched."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def _processes() -> tuple[int, int]:
    """Processes on this node, and nodes."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    here = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    return here, int(os.environ.get("SLURM_NNODES", "1"))

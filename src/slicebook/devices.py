"""Which device computes, how precisely, and this process's place among those that train together."""

from __future__ import annotations

import logging
import os

import torch
from lightning_fabric import Fabric

from slicebook.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")


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
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return a precision in Fabric's words; `auto` is `bf16-mixed` where it is native, else `32-true`.

    Native on recent GPUs, and on CPUs with the AVX-512 or AMX instructions for it: there a training step is
    about twice as fast. Elsewhere a CPU emulates bf16 at half the speed of float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = device.type == "cpu" and any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def launch(device: str = "auto", precision: str = "auto") -> Fabric:
    """Take one device, or this process's place among those that `torchrun` or SLURM started.

    Raises:
        ConfigError: A device or precision that is not known or not here.
    """
    chosen = choose_device(device)
    here, nodes = _processes()
    logging.getLogger("lightning_fabric").setLevel(
        logging.WARNING
    )  # it tells of the precision at every start
    try:
        fabric = Fabric(
            accelerator=chosen.type,
            devices=here,
            num_nodes=nodes,
            strategy="ddp" if here * nodes > 1 else "auto",
            precision=choose_precision(precision, chosen),  # type: ignore[arg-type]  # Fabric names what it knows
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"device {device}, precision {precision}: {error}") from error
    fabric.launch()
    return fabric


def _processes() -> tuple[int, int]:
    """Processes on this node, and nodes."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    here = int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    return here, int(os.environ.get("SLURM_NNODES", "1"))

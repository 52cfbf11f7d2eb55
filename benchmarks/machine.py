"""Hardware and software of a measurement, and its file; without names of folders, hosts or people."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from slicebook.devices import choose_precision, fastest_precision
from slicebook.environment import commit, versions
from slicebook.io.atomic import write_text

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")


def surroundings(threads: int, *packages: str, device: torch.device = CPU) -> dict[str, Any]:
    """Return hardware, software and date; of `packages`, the versions of those that are installed."""
    installed = {name: version for name in packages if (version := _version(name))}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        },
        "threads": threads,
        "precision": choose_precision("auto", device) or _precision(),
        "versions": versions() | installed,
    }


def card(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


def file_name(name: str) -> str:
    """Return a name in lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # torch lacks it
    }


def _driver() -> str | None:
    """Return the version of the driver, if nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(lines.split()), None)


def _precision() -> str:
    """Return the precision in which convolutions are faster on this CPU, forward and backward."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    images = torch.rand(16, 128, 16, 16)
    return fastest_precision(lambda: layer(images).sum().backward(), CPU)[0]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, atomically."""
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

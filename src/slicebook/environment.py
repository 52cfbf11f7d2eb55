"""Where a result comes from: the source, the versions, and the data."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from slicebook.records import Record


class Provenance(Record):
    """Where a model comes from: enough to make it again."""

    versions: dict[str, str]
    """Of Slicebook, Python and the libraries that shape the numbers."""
    commit: str | None
    """Of the source tree, when Slicebook runs from one; ends in `+` when it held changes."""
    device: str
    split_hash: str
    """Of the data set and its split; says whether patients were trained on."""
    train_patients: int
    train_slices: int
    spacing: float | None
    """In-plane, in mm, when the training slices were resampled."""
    epoch: int
    step: int
    seconds: float
    """Of training, validation included."""
    validation: dict[str, float]
    """Scores on validation patients when the model was kept."""


def versions() -> dict[str, str]:
    """Versions of Slicebook, Python and the libraries that shape the numbers."""
    names = ("slicebook", "torch", "lightning-fabric", "numpy", "scipy", "scikit-image")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def commit() -> str | None:
    """Commit of the source tree that runs, with `+` when it holds changes; None outside one."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != source.parents[1]:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None

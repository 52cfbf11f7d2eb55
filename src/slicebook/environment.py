"""Provenance of a result: source commit, versions, and data."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from slicebook.records import Record


class Provenance(Record):
    """Provenance of a model, sufficient to train it again."""

    versions: dict[str, str]
    """Of Slicebook, Python and the libraries that affect results."""
    commit: str | None
    """Of the source tree, if Slicebook runs from one; ends in `+` if it had changes."""
    device: str
    split_hash: str
    """Of the data set and its split; identifies the training patients."""
    train_patients: int
    train_slices: int
    spacing: float | None
    """In-plane, in mm, if the training slices were resampled."""
    epoch: int
    step: int
    seconds: float
    """Of training, including validation."""
    validation: dict[str, float]
    """Scores on validation patients when the model was saved."""
    initial: InitialModel | None = None
    """The model whose weights the training started from; None for random weights."""


class InitialModel(Record):
    """A model whose weights a training started from: what it learned is part of the new model."""

    weights_sha256: str
    provenance: Provenance


Provenance.model_rebuild()


def versions() -> dict[str, str]:
    """Return versions of Slicebook, Python and the libraries that affect results."""
    names = ("slicebook", "torch", "lightning-fabric", "numpy", "scipy", "scikit-image")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def commit() -> str | None:
    """Return the commit of the running source tree, with `+` if it has changes; None outside one."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != source.parents[1]:
            return None  # installed inside another repository
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None

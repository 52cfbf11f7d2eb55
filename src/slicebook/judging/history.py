"""How a model came to be: the curves that its training left in `metrics.csv`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from slicebook.config import Record

# Of each model: where it lies from the folder of its tokenizer or prior, and what is worth seeing of it.
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tokenizer": ("train_loss", "validation_loss"),
        "masks": ("train_loss", "validation_loss"),
        "prior": ("validation_bits_per_pixel",),
        "decoder": ("train_fidelity", "validation_fidelity"),
    }
)


class History(Record):
    """Of one training.

    Attributes:
        seconds: It took, validation included.
        curves: Points of (step, value), by the name of the column.
    """

    seconds: float
    curves: dict[str, tuple[tuple[int, float], ...]]


def read_history(tokenizer: Path | None, prior: Path | None) -> dict[str, History]:
    """Return the history of each model whose training left one beside it.

    Args:
        tokenizer: The folder of its run.
        prior: The folder of the prior, which holds those of the masks' tokenizer and of the decoder.
    """
    folders = {
        "tokenizer": tokenizer,
        "masks": prior and prior / "masks",
        "prior": prior,
        "decoder": prior and prior / "decoder",
    }
    found = {name: _read(folder / "metrics.csv", COLUMNS[name]) for name, folder in folders.items() if folder}
    return {name: history for name, history in found.items() if history}


def _read(path: Path, columns: tuple[str, ...]) -> History | None:
    """Return None where there is nothing to read: a model travels without its history."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step") and row.get("seconds")]
    curves = {
        name: tuple(
            (int(row["step"]), float(row[name]))
            for row in rows
            if math.isfinite(float(row.get(name) or "nan"))
        )
        for name in columns
    }
    kept = {name: points for name, points in curves.items() if points}
    return History(seconds=float(rows[-1]["seconds"]), curves=kept) if kept else None

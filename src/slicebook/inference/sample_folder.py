"""The folder of a generated set: its rows, and what is refused before anything is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.data.manifest import SliceKind
from slicebook.errors import DataError
from slicebook.io.resumable import partial_path, unfinished_request

RECORD_NAME = "generation.json"


class AlreadyCompleteError(DataError):
    """The folder already holds all samples of this command."""


@dataclass(frozen=True)
class Sample:
    """One row of the manifest of a generated set.

    Attributes:
        name: Stem of its file names.
        seed: Its seed; with the same model and settings it gives the same sample.
        position: Requested position in the volume, 0 to 1; None where none was requested.
        group: Requested class; empty where none was requested.
    """

    name: str
    seed: int
    position: float | None
    group: str


def refuse_full(out: Path, request: Mapping[str, Any]) -> None:
    """Refuse a folder that is not empty.

    Raises:
        AlreadyCompleteError: It holds all samples of this request.
        DataError: It holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if _finished_request(out) == request:
        if unfinished_request(out) == request:  # interrupted after the set got its name
            shutil.rmtree(partial_path(out))
        raise AlreadyCompleteError(
            f"{out}: already holds all {request['count']} samples of this command; choose another folder to "
            "draw others"
        )
    raise DataError(f"{out}: is not empty; choose another folder")


def earlier_request(out: Path) -> dict[str, Any]:
    """Return the request of a set that was interrupted or is finished; empty where there is none."""
    return unfinished_request(out) or _finished_request(out)


def _finished_request(out: Path) -> dict[str, Any]:
    record = out / RECORD_NAME
    return dict(json.loads(record.read_text(encoding="utf-8")).get("request", {})) if record.is_file() else {}


def check_room(out: Path, count: int, kind: SliceKind) -> None:
    """Refuse a disk without room for the samples."""
    existing = out.absolute()
    while not existing.exists():
        existing = existing.parent
    # A float32 slice hardly compresses; one byte per pixel for the mask and one for the picture.
    wanted = count * kind.rows * kind.columns * 6
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise DataError(
            f"{out}: {count} samples take about {wanted / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "ask for fewer, or choose another disk"
        )

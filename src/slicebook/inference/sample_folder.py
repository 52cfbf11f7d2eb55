"""The folder of a generated set: written group by group, resumable, complete or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slicebook.data.manifest import SliceKind
from slicebook.errors import ConfigError, DataError
from slicebook.io.atomic import put_in_place, write_text

REQUEST_NAME = "request.json"
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


class SampleFolder:
    """The folder of a generated set, and the partial folder beside it in which the set is written.

    Args:
        out: Folder of the set.
        request: All that the samples depend on, as JSON values: only an equal request resumes.
    """

    def __init__(self, out: Path, request: Mapping[str, Any]) -> None:
        self.out, self.request = out, request
        self.target = out.resolve()  # `.` has no name, and a link to an empty folder stays a link
        self.partial = self.target.with_name(f"{self.target.name}.partial")
        self.set = self.partial / "set"

    def refuse_full(self) -> None:
        """Refuse a folder that is not empty."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return
        if _finished_request(self.out) == self.request:
            if self._is_ours():  # interrupted after the set was moved
                shutil.rmtree(self.partial)
            raise AlreadyCompleteError(
                f"{self.out}: already holds all {self.request['count']} samples of this command; choose "
                "another folder to draw others"
            )
        raise DataError(f"{self.out}: is not empty; choose another folder")

    def open(self, kind: SliceKind, count: int, group_size: int) -> None:
        """Start a set, or resume one with the same request; count its finished groups."""
        if self._is_ours():
            recorded = json.loads((self.partial / REQUEST_NAME).read_text(encoding="utf-8"))
            different = [
                f"{key} {recorded.get(key)} then, {self.request.get(key)} now"
                for key in {**recorded, **self.request}
                if recorded.get(key) != self.request.get(key)
            ]
            if different:
                raise ConfigError(
                    f"{self.partial}: holds unfinished samples of other settings ({'; '.join(different)}); "
                    "repeat that command, choose another --out, or remove this folder"
                )
        elif self.partial.exists() and (not self.partial.is_dir() or any(self.partial.iterdir())):
            raise DataError(
                f"{self.partial}: is not empty, and is needed for unfinished samples; move it away or choose "
                "another --out"
            )
        self.groups = 0
        while self._record(self.groups).is_file():
            self.groups += 1
        _check_room(self.out, max(0, count - self.groups * group_size), kind)
        self.partial.mkdir(parents=True, exist_ok=True)
        if not self._is_ours():
            write_text(self.partial / REQUEST_NAME, json.dumps(self.request, indent=2) + "\n")
        for folder in (self.set / "images", self.partial / "groups"):
            folder.mkdir(parents=True, exist_ok=True)

    def finish_group(self, samples: list[Sample]) -> None:
        """Record a group after all its files are written."""
        write_text(self._record(self.groups), json.dumps([asdict(sample) for sample in samples]))
        self.groups += 1

    def samples(self) -> list[Sample]:
        """Return the samples of all finished groups."""
        groups = [json.loads(self._record(index).read_text()) for index in range(self.groups)]
        return [Sample(**fields) for group in groups for fields in group]

    def finish(self) -> None:
        """Move the finished set to its folder."""
        put_in_place(self.set, self.target)
        shutil.rmtree(self.partial)

    def _is_ours(self) -> bool:
        return (self.partial / REQUEST_NAME).is_file()

    def _record(self, group: int) -> Path:
        return self.partial / "groups" / f"{group:06}.json"


def earlier_request(out: Path) -> dict[str, Any]:
    """Return the request of a set that was interrupted or is finished; empty where there is none."""
    unfinished = out.resolve().with_name(f"{out.resolve().name}.partial") / REQUEST_NAME
    if unfinished.is_file():
        return dict(json.loads(unfinished.read_text(encoding="utf-8")))
    return _finished_request(out)


def _finished_request(out: Path) -> dict[str, Any]:
    record = out / RECORD_NAME
    return dict(json.loads(record.read_text(encoding="utf-8")).get("request", {})) if record.is_file() else {}


def _check_room(out: Path, count: int, kind: SliceKind) -> None:
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

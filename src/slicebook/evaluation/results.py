"""The results of an evaluation while it runs: records of its parts, seconds, and what was skipped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slicebook.errors import DataError, ShapeError
from slicebook.evaluation.kept import KeptWork
from slicebook.records import Record
from slicebook.text import to_json


class Results:
    """The records of the parts, the seconds of each piece of work, and why parts were skipped.

    Args:
        say: Called with a line per message.
        placeholders: What stands in a report in place of each path: a path may identify people.
        out: Folder for files.
        kept: What an interrupted evaluation has done.
    """

    def __init__(
        self, say: Callable[[str], None], placeholders: Mapping[str, str], out: Path, kept: KeptWork
    ) -> None:
        self.out, self.kept = out, kept
        self.records: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.say, self._placeholders = say, placeholders

    @contextmanager
    def measuring(self, name: str, parts: Sequence[str] | None = None) -> Iterator[None]:
        """Time a piece of work; with too little data, skip the parts that need it (by default itself)."""
        parts = (name,) if parts is None else parts
        started = time.perf_counter()
        try:
            yield
        except (DataError, ShapeError) as error:
            reason = str(error)
            self.say(f"skipped: {', '.join(parts) or name}: {reason}")
            for path, placeholder in self._placeholders.items():
                reason = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?=[:/])", placeholder, reason)
            self.skipped |= dict.fromkeys(parts, reason)
        self.took(name, started)

    def took(self, name: str, started: float) -> None:
        """Record the seconds of a piece of work, or those that it took when it was done."""
        seconds = round(time.perf_counter() - started, 1)
        self.seconds[name] = self.kept.record(f"seconds of {name}", float, lambda: seconds)

    def add(self, name: str, kind: type[Record], compute: Callable[[], Record]) -> None:
        """Compute the record of a part, unless it is kept, and add it.

        Raises:
            DataError: A number in it is not finite, which JSON cannot hold.
        """
        record = self.kept.record(name, kind, compute)
        try:
            to_json(record)
        except ValueError as error:
            raise DataError(f"{name}: a measured value is not finite ({error})") from error
        self.records[name] = record

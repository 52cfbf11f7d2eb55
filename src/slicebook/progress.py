"""Progress of a long work on stderr: units done, of how many, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of units done and of all units: before the work, and after each unit."""

Counter: TypeAlias = Callable[[str], Progress | None]
"""Returns a `Progress` for units of this name, such as `volume`; None if nobody wants to know."""

REDRAWN, LOGGED = 0.1, 60.0  # seconds between two texts on a terminal, and between two lines of a log


class ProgressLine:
    """Writes `volume 3 of 40, 2:05 left`.

    On a terminal, the text is redrawn on one line. Elsewhere, such as in the log of a job, a line is written
    once a minute, so work that takes less leaves none.

    Args:
        what: Name of a unit, in the singular.
        clock: Returns seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self._clock = what, clock
        self._began = self._written = clock()
        self._from, self._last, self._width = 0, -1, 0

    def __call__(self, done: int, total: int) -> None:
        """Show how many units are done."""
        now, terminal = self._clock(), sys.stderr.isatty()
        if self._last < 0 or done <= self._last:  # the first call, also of the next round
            self._began, self._from = now, done
        self._last = done
        if terminal and (now - self._written >= REDRAWN or done == total or not self._width):
            text = self._text(done, total, now)
            sys.stderr.write(f"\r{text.ljust(self._width)}" + ("\n" if done == total else ""))
            sys.stderr.flush()
            self._written, self._width = now, 0 if done == total else len(text)
        elif not terminal and now - self._written >= LOGGED:
            sys.stderr.write(f"{self._text(done, total, now)}\n")
            sys.stderr.flush()
            self._written = now

    def _text(self, done: int, total: int, now: float) -> str:
        text = f"{self.what} {done} of {total}"
        if not self._from < done < total:
            return text
        left = round((now - self._began) / (done - self._from) * (total - done))
        hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{text}, {clock} left"

"""Functions for worker processes, which must be able to import them."""

import os
import signal
import time
from pathlib import Path

from slicebook.errors import DataError


def slow_at_first(number: int, folder: Path) -> int:
    """Leave a file, and return ten times the number; the first takes longest."""
    (folder / str(number)).touch()
    time.sleep(0.3 if number == 0 else 0)
    return 10 * number


def refuse_three(number: int) -> int:
    """Return the number, unless it is 3."""
    if number == 3:
        raise DataError("3: is not wanted")
    return number


def end_the_process(number: int) -> int:
    """Be killed, as by the kernel when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def announce_and_wait(number: int, folder: Path) -> int:
    """Leave a file named after the process, and take long."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return number

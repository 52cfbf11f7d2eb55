"""Processes that are killed at a chosen moment, as by a power cut."""

import itertools
import os
import signal
import traceback
import warnings


def kill_within(owner, name, *, before, count):
    """Kill this process with SIGKILL at the start or at the end of the n-th call of a function."""
    whole, calls = getattr(owner, name), itertools.count(1)

    def call(*given, **named):
        number = next(calls)
        if before and number == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*given, **named)
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call)


def forked(work):
    """Call a function in a forked process, which needs no second start of Python; return its number."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; no thread here holds a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended_by(process):
    """Wait for a process, and return the signal that ended it; 0 if it ended by itself."""
    _, status = os.waitpid(process, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def files_of(folder):
    """Return the content of every file below a folder, hidden ones too, by its place."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }

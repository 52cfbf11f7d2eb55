"""Every error Slicebook raises on purpose.

A message says where, what was found, what was wanted, and what to do. Each error is also the builtin it
resembles, so that `except ValueError` in a user's script keeps working.
"""


class SlicebookError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(SlicebookError, ValueError):
    """A setting or recipe cannot be used."""


class DataError(SlicebookError, ValueError):
    """A file, folder or data set cannot be used."""


class CheckpointError(SlicebookError, RuntimeError):
    """A model or run cannot be loaded, or does not fit what it is asked to do."""


class StoppedBySignalError(SlicebookError, RuntimeError):
    """A signal asked a command to stop; what it reached is kept, and the same command continues it."""


class ProcessLostError(SlicebookError, RuntimeError):
    """Another process of a training has ended; what it reached is kept, and the same command continues it."""


class ShapeError(SlicebookError, ValueError):
    """An array has a shape that the operation cannot take."""

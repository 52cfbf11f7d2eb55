"""Limits on the memory that reading a file may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slicebook.errors import DataError

_UNPACKS_FREELY = 64 * 1024**2  # bytes; below this any ratio is allowed: an empty mask compresses 1000:1


@dataclass(frozen=True)
class Limits:
    """Limits on the memory that reading a file may take.

    Attributes:
        max_bytes: largest size of one volume, in bytes: as stored, and as float32.
        max_expansion: largest ratio of unpacked to packed bytes, for files that unpack to over 64 MiB.
    """

    max_bytes: int = 2 * 1024**3
    max_expansion: float = 250.0

    def allowance(self, packed: int) -> int:
        """Return how many bytes a file of `packed` bytes may expand to."""
        return min(self.max_bytes, max(_UNPACKS_FREELY, int(self.max_expansion * packed)))

    def check(self, path: Path, packed: int, unpacked: int, remedy: str) -> None:
        """Raise `DataError` if a file of `packed` bytes must not expand to `unpacked` bytes."""
        if unpacked > self.max_bytes:
            raise DataError(
                f"{path}: needs {unpacked:,} bytes, wanted at most {self.max_bytes:,}; "
                "crop or split it, or raise Limits.max_bytes if you trust it"
            )
        if unpacked > self.allowance(packed):
            raise DataError(
                f"{path}: {packed:,} bytes claim to unpack to {unpacked:,}, "
                f"wanted at most {self.max_expansion:g} times; {remedy}"
            )


LIMITS = Limits()

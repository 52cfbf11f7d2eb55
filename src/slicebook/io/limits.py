"""How much memory a file may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slicebook.errors import DataError

_UNPACKS_FREELY = 64 * 1024**2  # bytes; an empty mask compresses 1000:1 and harms no one below this


@dataclass(frozen=True)
class Limits:
    """How much memory a file may ask for.

    Attributes:
        max_bytes: largest size of one volume, in bytes: as stored, and as float32.
        max_expansion: largest ratio of unpacked to packed bytes, for files that unpack to over 64 MiB.
    """

    max_bytes: int = 2 * 1024**3
    max_expansion: float = 250.0

    def allowance(self, packed: int) -> int:
        """Return how many bytes a file of `packed` bytes may unpack to."""
        return min(self.max_bytes, max(_UNPACKS_FREELY, int(self.max_expansion * packed)))

    def check(self, path: Path, packed: int, unpacked: int, remedy: str) -> None:
        """Raise `DataError` if `unpacked` bytes out of `packed` ones are more than a file may ask for."""
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

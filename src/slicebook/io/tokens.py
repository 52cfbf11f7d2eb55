"""Tokens of a volume on disk: an `.npz` without pickle that holds all that decoding needs but the model."""

# mypy: allow-untyped-calls
from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64, UInt16

from slicebook.errors import DataError
from slicebook.io.atomic import write_bytes
from slicebook.io.limits import LIMITS

SCHEMA_VERSION = 1

# What zipfile and numpy raise on bytes that are no archive of arrays.
_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A volume as tokens.

    Attributes:
        tokens: One array of grids a level, finest first: slices × rows × columns.
        size: Rows and columns of a slice, before padding to whole tokens.
        codebook_hash: Of the model that wrote the tokens; they mean nothing to another.
        low, high: Intensities that -1 and 1 stand for.
        axes, flips: How the volume's own axes become (slice, row, column); see `volumes.Orientation`.
        affine: Voxel index to RAS+ mm.
        shape_on_disk: Of the volume's file.
        geometry: Its NIfTI header, geometry alone; empty for DICOM.
    """

    tokens: tuple[UInt16[np.ndarray, "n _ _"], ...]
    size: tuple[int, int]
    codebook_hash: str
    low: float
    high: float
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine: Float64[np.ndarray, "4 4"]
    shape_on_disk: tuple[int, ...]
    geometry: bytes

    def write(self, path: str | Path) -> None:
        """Write the file whole or not at all.

        Raises:
            DataError: The name does not end in .npz, or it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise DataError(f"{path}: wanted a name that ends in .npz")
        arrays: dict[str, Any] = {f"tokens_{level}": grid for level, grid in enumerate(self.tokens)}
        arrays |= {
            "schema_version": np.int64(SCHEMA_VERSION),
            "size": np.array(self.size),
            "codebook_hash": np.array(self.codebook_hash),
            "intensity": np.array([self.low, self.high]),
            "axes": np.array(self.axes),
            "flips": np.array(self.flips),
            "affine": self.affine,
            "shape_on_disk": np.array(self.shape_on_disk),
            "geometry": np.frombuffer(self.geometry, dtype=np.uint8),
        }
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_bytes(path, content.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> TokenFile:
        """Read a token file.

        Raises:
            DataError: It is no whole token file, of another format, or larger than a volume may be.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(item.file_size for item in archive.infolist())
            LIMITS.check(path, path.stat().st_size, unpacked, "encode the volume again")
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            if int(found["schema_version"]) != SCHEMA_VERSION:
                raise DataError(
                    f"{path}: token format {int(found['schema_version'])}, this Slicebook reads "
                    f"{SCHEMA_VERSION}; encode the volume again"
                )
            return cls._from_arrays(found)
        except _DAMAGE as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path}: is no whole token file ({type(error).__name__}: {error}); "
                "write one with slicebook encode"
            ) from error

    @classmethod
    def _from_arrays(cls, found: dict[str, Any]) -> TokenFile:
        levels = sum(name.startswith("tokens_") for name in found)
        tokens = tuple(found[f"tokens_{level}"] for level in range(levels))
        if not tokens or any(grid.dtype != np.uint16 or grid.ndim != 3 for grid in tokens):
            raise ValueError("its tokens are no grids of 16-bit integers")
        if len({len(grid) for grid in tokens}) != 1:
            raise ValueError("its levels hold different numbers of slices")
        axes = tuple(int(axis) for axis in found["axes"])
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"its axes are {axes}")
        rows, columns = (int(side) for side in found["size"])
        low, high = (float(value) for value in found["intensity"])
        affine = found["affine"].astype(np.float64)
        if affine.shape != (4, 4) or not np.abs([low, high, *affine.flat]).max() < np.finfo(np.float32).max:
            raise ValueError("its affine or intensities are no numbers of a volume")
        shape_on_disk = tuple(int(side) for side in found["shape_on_disk"])
        sides = dict(zip(axes, (len(tokens[0]), rows, columns), strict=True))
        own = (sides[0], sides[1], sides[2])
        if min(own) < 1 or (*shape_on_disk, 1)[:3] != own or not {*shape_on_disk[3:]} <= {1}:
            raise ValueError(f"its slices make a volume of {own}, its file was {shape_on_disk}")
        geometry = found["geometry"].astype(np.uint8).tobytes()
        if len(geometry) not in (0, 348, 540):
            raise ValueError(f"its geometry of {len(geometry)} bytes is no NIfTI header")
        return cls(
            tokens=tokens,
            size=(rows, columns),
            codebook_hash=str(found["codebook_hash"]),
            low=low,
            high=high,
            axes=(axes[0], axes[1], axes[2]),
            flips=(bool(found["flips"][0]), bool(found["flips"][1]), bool(found["flips"][2])),
            affine=affine,
            shape_on_disk=shape_on_disk,
            geometry=geometry,
        )

    def header(self) -> nib.Nifti1Header | None:
        """The NIfTI header that `geometry` holds."""
        if not self.geometry:
            return None
        kind = nib.Nifti1Header if len(self.geometry) == 348 else nib.Nifti2Header
        return kind(self.geometry, endianness="<", check=False)

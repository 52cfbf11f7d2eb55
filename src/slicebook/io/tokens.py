"""Tokens of a volume on disk. The safetensors file contains all that decoding needs except the model.

The grids are tensors `tokens_0`, `tokens_1`, …, finest first; `geometry` holds the bytes of the volume's
NIfTI header. Everything else is in the metadata of the file.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float64, UInt16
from pydantic import ValidationError
from torch import Tensor

from slicebook.errors import CheckpointError, DataError
from slicebook.io.limits import LIMITS
from slicebook.io.tensors import hash_tensors, read_tensors, write_tensors
from slicebook.records import Record

SCHEMA_VERSION = 1
SUFFIX = ".safetensors"

Row = tuple[float, float, float, float]


class _Header(Record):
    """The metadata of a token file."""

    kind: Literal["tokens"] = "tokens"
    schema_version: int = SCHEMA_VERSION
    size: tuple[int, int]
    codebook_hash: str
    intensity: tuple[float, float]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine: tuple[Row, Row, Row, Row]
    shape_on_disk: tuple[int, ...]
    tensors_sha256: str


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A volume as tokens.

    Attributes:
        tokens: One array of grids per level, finest first: slices × rows × columns.
        size: Rows and columns of a slice, before padding to whole tokens.
        codebook_hash: Hash of the codebooks of the model; only this model can decode the tokens.
        low, high: Intensities that are mapped to -1 and 1.
        axes, flips: Orientation of the slices; see `volume.Orientation`.
        affine: Voxel index to RAS+ mm.
        shape_on_disk: Shape in the volume's file.
        geometry: The geometry fields of its NIfTI header; empty for DICOM.
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
        """Write the file completely or not at all.

        Raises:
            DataError: The name does not end in .safetensors, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise DataError(f"{path}: wanted a name that ends in {SUFFIX}")
        tensors = {f"tokens_{level}": torch.from_numpy(grid) for level, grid in enumerate(self.tokens)}
        if self.geometry:
            tensors["geometry"] = torch.frombuffer(bytearray(self.geometry), dtype=torch.uint8)
        header = _Header(
            size=self.size,
            codebook_hash=self.codebook_hash,
            intensity=(self.low, self.high),
            axes=self.axes,
            flips=self.flips,
            affine=self.affine.tolist(),
            shape_on_disk=self.shape_on_disk,
            tensors_sha256=hash_tensors(tensors),
        )
        write_tensors(path, tensors, header.model_dump(mode="json"))

    @classmethod
    def read(cls, path: str | Path) -> TokenFile:
        """Read a token file.

        Raises:
            DataError: The file is damaged, is not a token file, has another format version, or is larger than
                a volume may be.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: is not a file; wanted a token file that slicebook encode wrote")
        LIMITS.check(path, size := path.stat().st_size, size, "encode the volume again")
        try:
            tensors, info = read_tensors(path)
        except CheckpointError as error:
            raise DataError(
                f"{path}: is not a complete token file, wanted a safetensors file that slicebook encode "
                "wrote; encode the volume again"
            ) from error
        kind = info.get("kind")
        if kind != "tokens":
            raise DataError(
                f"{path}: holds {f'a {kind}' if kind else 'no data of Slicebook'}, wanted tokens; "
                "write them with slicebook encode"
            )
        if info.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{path}: token format {info.get('schema_version')}, this Slicebook reads {SCHEMA_VERSION}; "
                "encode the volume again"
            )
        try:
            return cls._from_parts(tensors, info)
        except ValueError as error:
            reason = _first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise DataError(
                f"{path}: is not a complete token file ({reason}); write one with slicebook encode"
            ) from error

    @classmethod
    def _from_parts(cls, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> TokenFile:
        header = _Header.model_validate(info)
        if hash_tensors(tensors) != header.tensors_sha256:
            raise ValueError("its tokens do not match their hash")
        levels = sum(name.startswith("tokens_") for name in tensors)
        if not levels or not all(f"tokens_{level}" in tensors for level in range(levels)):
            raise ValueError("a level is missing")
        tokens = tuple(tensors[f"tokens_{level}"].numpy() for level in range(levels))
        if any(grid.dtype != np.uint16 or grid.ndim != 3 for grid in tokens):
            raise ValueError("its tokens are not grids of 16-bit integers")
        if len({len(grid) for grid in tokens}) != 1:
            raise ValueError("its levels hold different numbers of slices")
        if sorted(header.axes) != [0, 1, 2]:
            raise ValueError(f"its axes are {header.axes}")
        affine = np.array(header.affine, np.float64)
        if not np.abs([*header.intensity, *affine.flat]).max() < np.finfo(np.float32).max:
            raise ValueError("its affine or intensities are not finite numbers of a volume")
        sides = dict(zip(header.axes, (len(tokens[0]), *header.size), strict=True))
        own = (sides[0], sides[1], sides[2])
        shape = header.shape_on_disk
        if min(own) < 1 or (*shape, 1)[:3] != own or not {*shape[3:]} <= {1}:
            raise ValueError(f"its slices make a volume of {own}, its file was {shape}")
        geometry = tensors.get("geometry", torch.empty(0)).to(torch.uint8).numpy().tobytes()
        if len(geometry) not in (0, 348, 540):
            raise ValueError(f"its geometry of {len(geometry)} bytes is not a NIfTI header")
        return cls(
            tokens=tokens,
            size=header.size,
            codebook_hash=header.codebook_hash,
            low=header.intensity[0],
            high=header.intensity[1],
            axes=header.axes,
            flips=header.flips,
            affine=affine,
            shape_on_disk=shape,
            geometry=geometry,
        )

    def header(self) -> nib.Nifti1Header | None:
        """Return the NIfTI header that `geometry` holds."""
        if not self.geometry:
            return None
        kind = nib.Nifti1Header if len(self.geometry) == 348 else nib.Nifti2Header
        return kind(self.geometry, endianness="<", check=False)


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"

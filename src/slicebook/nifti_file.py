"""One NIfTI file, not trusted: its header and stored values.

Sizes are checked against the header before anything is allocated, and gzip is read to its checksum.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped

from slicebook.errors import DataError

_INTENSITY_CODES = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # real integers and floats up to 64 bits
_KIND_NAMES = {32: "complex", 1792: "complex", 2048: "complex", 128: "RGB colour", 2304: "RGBA colour"}
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
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


def read_stored(path: Path, limits: Limits) -> tuple[nib.Nifti1Header, Shaped[np.ndarray, "*shape"]]:
    """Return the header as it is and the stored values, unscaled, of a file that is whole."""
    with _opened(path) as (stream, packed):
        header = _parse_header(path, stream.read(540))
        shape = _shape_of(path, header)
        dtype = header.get_data_dtype()
        offset = _offset_of(path, header)
        size = offset + math.prod(shape) * dtype.itemsize
        limits.check(path, packed, max(size, math.prod(shape) * 4), "if you trust it, unpack it with gunzip")
        stream.seek(0)
        content = bytearray(size)
        filled = 0
        while count := stream.readinto(memoryview(content)[filled:]):  # type: ignore[attr-defined]  # BinaryIO lacks it
            filled += count
        if filled < size:
            raise DataError(
                f"{path}: ends after {filled:,} bytes, its header wants {size:,}; copy or download it again"
            )
        if stream.read(1):  # in a gzip this also reads, and verifies, the checksum
            raise DataError(f"{path}: is longer than the {size:,} bytes of its header; save it again")
    return header, np.frombuffer(content, dtype, offset=offset).reshape(shape, order="F")


_TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name")


def text_fields(path: Path) -> set[str]:
    """Return the names of header fields that hold text, and `extensions`; never the text itself."""
    try:
        with _opened(path) as (stream, _):
            start = stream.read(544)
            header = _parse_header(path, start)
    except DataError:
        return set()
    names = {name for name in _TEXT_FIELDS if name in header and bytes(header[name]).strip(b"\0 ")}
    size = int(header.sizeof_hdr)
    return names | ({"extensions"} if start[size : size + 1] > b"\0" else set())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yield the unpacked stream and the size on disk; damage on the way is a `DataError`."""
    try:
        with path.open("rb") as file:
            packed = os.fstat(file.fileno()).st_size
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_gzip:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream, packed  # type: ignore[misc]  # GzipFile is a BinaryIO in all but name
            else:
                yield file, packed
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip stream is damaged ({error}); copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error


def _parse_header(path: Path, start: bytes) -> nib.Nifti1Header:
    size = next((n for n in (348, 540) if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), 0)
    magic = {348: start[344:348], 540: start[4:8]}.get(size, b"")
    if magic[:3] in (b"ni1", b"ni2"):
        raise DataError(f"{path}: is the header half of a .hdr/.img pair, wanted one file; convert it")
    if len(start) < size or magic[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path}: is no NIfTI file (its header has no n+1 or n+2); wanted .nii or .nii.gz")
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    return kind(start[:size], check=False)


def _shape_of(path: Path, header: nib.Nifti1Header) -> tuple[int, ...]:
    """Return the shape as stored, once it is known to be a real 2D or 3D image."""
    code = int(header["datatype"])
    if code not in _INTENSITY_CODES:
        raise DataError(
            f"{path}: holds {_KIND_NAMES.get(code, 'unsupported')} values (NIfTI type {code}), wanted one "
            "real intensity a voxel; convert it to float32 (a magnitude or grey image)"
        )
    dimensions = int(header["dim"][0])
    shape = tuple(int(size) for size in header["dim"][1 : 1 + dimensions]) if 0 < dimensions < 8 else ()
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(
            f"{path}: has the shape {shape}, wanted 2D or 3D and no size below 1; export it again"
        )
    if max(shape[3:], default=1) > 1:
        raise DataError(
            f"{path}: is {len(shape)}D with the shape {shape}, wanted 2D or 3D; "
            "save one volume of it (nibabel: image.slicer[..., 0])"
        )
    return shape


def _offset_of(path: Path, header: nib.Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    smallest = 352 if header.sizeof_hdr == 348 else 544
    if not (smallest <= offset < 2**53 and offset == int(offset)):
        raise DataError(
            f"{path}: voxels start at byte {offset:g}, wanted {smallest} or more; export it again"
        )
    return int(offset)


def geometry_of(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Return a little-endian header with the geometry of `header` and nothing else."""
    clean = type(header)(endianness="<")
    for field in _GEOMETRY_FIELDS:
        clean[field] = header[field]
    clean["dim"] = header["dim"]
    clean["pixdim"][:4] = header["pixdim"][:4]
    if clean["pixdim"][0] == 0:
        clean["pixdim"][0] = 1  # NIfTI-1: "qfac = 0 is treated as 1"
    clean["xyzt_units"] = int(header["xyzt_units"]) & 7  # space; time says nothing about a volume
    return clean


def header_for(shape: tuple[int, ...], affine: Float64[np.ndarray, "4 4"]) -> nib.Nifti1Header:
    """Return a header whose sform, and if it is free of shear also its qform, says `affine`."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    is_orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    header.set_qform(affine, code="scanner" if is_orthogonal else "unknown")
    return header

"""Read MetaImage (.mha, .mhd) and NRRD (.nrrd) by SimpleITK, the extra `itk`.

SimpleITK reads a file that is cut off as zeros, so the size of the data is compared with the header first.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from slicebook.errors import ConfigError, DataError
from slicebook.io.limits import LIMITS, Limits
from slicebook.io.volume import Volume, check_affine

_HEADER_BYTES = 1 << 16
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path, *, limits: Limits = LIMITS) -> Volume:
    """Read a real 2D or 3D image.

    Raises:
        ConfigError: SimpleITK is not installed.
        DataError: The file is damaged, cut off or too large, has several components, or is not 2D or 3D.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading .mha, .mhd and .nrrd needs SimpleITK; install the extra: "
            "pip install 'slicebook[itk]'"
        ) from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path}: is damaged or not of its format; copy or export it again") from error
    shape = tuple(int(size) for size in reader.GetSize())
    if reader.GetNumberOfComponents() != 1 or len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(
            f"{path}: has the shape {shape} and {reader.GetNumberOfComponents()} components, wanted one "
            "intensity per voxel in 2D or 3D; export one channel"
        )
    count = int(np.prod(shape))
    limits.check(path, limits.max_bytes, count * 4, "")
    size = _SIZES.get(int(reader.GetPixelID()), 0)
    if size:
        _check_complete(path, count * size, limits)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path}: its data cannot be decoded; copy or export it again") from error
    array = np.asarray(SimpleITK.GetArrayFromImage(image).T, dtype=np.float32).reshape(
        (*shape, 1)[:3], order="F"
    )
    if not np.isfinite(array).all():
        raise DataError(
            f"{path}: holds NaN or infinite values, wanted finite ones; replace them and save again"
        )
    affine = _affine(image, len(shape))
    check_affine(path, affine)
    return Volume(array, affine, shape)


# Bytes per voxel by SimpleITK's pixel identifier: unsigned and signed integers of 8 to 64 bits, floats.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 8, 7: 8, 8: 4, 9: 8}


def _affine(image: Any, dimensions: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    direction = np.eye(3)
    direction[:dimensions, :dimensions] = np.reshape(image.GetDirection(), (dimensions, dimensions))
    spacing = (*image.GetSpacing(), 1.0)[:3]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = (*image.GetOrigin(), 0.0)[:3]
    ras: np.ndarray[Any, np.dtype[np.float64]] = _LPS_TO_RAS @ affine
    return ras


def _check_complete(path: Path, wanted: int, limits: Limits) -> None:
    """Raise `DataError` if the data hold fewer bytes than `wanted`."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    place = _nrrd_data(path, head) if path.suffix.lower() == ".nrrd" else _metaimage_data(path, head)
    if place is None:  # several data files: SimpleITK reports a missing one
        return
    data, start, packing = place
    try:
        found = data.stat().st_size - start
        if packing:
            found = _unpacked_size(data, start, packing, wanted)
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: its data {data.name} are missing or damaged; copy them again") from error
    if found < wanted:
        raise DataError(f"{path}: holds {found:,} bytes of data, its header wants {wanted:,}; copy it again")


def _unpacked_size(data: Path, start: int, packing: str, wanted: int) -> int:
    """Return the size of unpacked data, its checksum verified; reading stops beyond `wanted`."""
    unpack = zlib.decompressobj(wbits=31 if packing == "gzip" else 15)
    found = 0
    with data.open("rb") as file:
        file.seek(start)
        while not unpack.eof and found <= wanted:
            piece = unpack.unconsumed_tail or file.read(1 << 20)
            if not piece:
                raise EOFError
            found += len(unpack.decompress(piece, 1 << 24))
    return found


def _metaimage_data(path: Path, head: bytes) -> tuple[Path, int, str] | None:
    match = re.search(rb"^ElementDataFile\s*=\s*(.+?)[ \t]*\r?\n", head, re.MULTILINE)
    if match is None:
        return None
    packing = "zlib" if re.search(rb"^CompressedData\s*=\s*True", head, re.MULTILINE) else ""
    name = match[1].decode(errors="replace")
    if name.upper() == "LOCAL":
        return path, match.end(), packing
    return None if name.upper().startswith("LIST") or "%" in name else (path.parent / name, 0, packing)


def _nrrd_data(path: Path, head: bytes) -> tuple[Path, int, str] | None:
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    encoding = re.search(rb"^encoding:\s*(\w+)", text, re.MULTILINE)
    detached = re.search(rb"^data ?file:\s*(.+?)\s*$", text, re.MULTILINE)
    kind = encoding[1].decode().lower() if encoding else "raw"
    if kind not in ("raw", "gzip", "gz"):  # text, bzip2: no size to compare
        return None
    packing = "" if kind == "raw" else "gzip"
    if detached is None:
        return (path, end.end(), packing) if end else None
    name = detached[1].decode(errors="replace")
    return None if name.startswith("LIST") or "%" in name else (path.parent / name, 0, packing)

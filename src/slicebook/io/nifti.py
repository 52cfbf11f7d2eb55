"""Read and write NIfTI files.

Sizes in the header are checked before memory is allocated. The checksum of gzip files is verified.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Shaped
from nibabel.spatialimages import HeaderDataError

from slicebook.errors import DataError, ShapeError
from slicebook.io.atomic import write_bytes
from slicebook.io.limits import LIMITS, Limits
from slicebook.io.volume import Volume, check_affine, checked_values

_INTENSITY_CODES = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # real integers and floats up to 64 bits
_KIND_NAMES = {32: "complex", 1792: "complex", 2048: "complex", 128: "RGB colour", 2304: "RGBA colour"}
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def read_stored(
    path: Path, limits: Limits, *, with_channels: bool = False
) -> tuple[nib.Nifti1Header, Shaped[np.ndarray, "*shape"]]:
    """Return the unchanged header and the unscaled stored values of a file, verified to be complete.

    Args:
        path: The file.
        limits: Limits on memory.
        with_channels: Whether the file may be 4D.
    """
    with _opened(path) as (stream, packed):
        header = _parse_header(path, stream.read(540))
        shape = _shape_of(path, header, with_channels)
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
    """Yield the uncompressed stream and the size on disk; raise `DataError` if the file is damaged."""
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
        raise DataError(f"{path}: is not a NIfTI file (its header has no n+1 or n+2); wanted .nii or .nii.gz")
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    return kind(start[:size], check=False)


def _shape_of(path: Path, header: nib.Nifti1Header, with_channels: bool) -> tuple[int, ...]:
    """Return the stored shape; raise `DataError` unless it is a real-valued 2D or 3D (or 4D) image."""
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
    if max(shape[4 if with_channels else 3 :], default=1) > 1:
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
    """Return a little-endian header with the geometry fields of `header` alone."""
    clean = type(header)(endianness="<")
    for field in _GEOMETRY_FIELDS:
        clean[field] = header[field]
    clean["dim"] = header["dim"]
    clean["pixdim"][:4] = header["pixdim"][:4]
    if clean["pixdim"][0] == 0:
        clean["pixdim"][0] = 1  # NIfTI-1: "qfac = 0 is treated as 1"
    clean["xyzt_units"] = int(header["xyzt_units"]) & 7  # spatial units only
    return clean


def header_for(shape: tuple[int, ...], affine: Float64[np.ndarray, "4 4"]) -> nib.Nifti1Header:
    """Return a header with `affine` as sform, and as qform too unless it has shear."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    is_orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    header.set_qform(affine, code="scanner" if is_orthogonal else "unknown")
    return header


_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI xyzt_units: unknown, metre, mm, micrometre


def read_nifti(path: Path | str, *, limits: Limits = LIMITS, channel: int | None = None) -> Volume:
    """Read a 2D or 3D NIfTI-1 or NIfTI-2 file; gzip is recognised by content, not by name.

    Args:
        path: The file.
        limits: Limits on memory.
        channel: Index along the fourth axis, of a file whose fourth axis is that of channels.

    Raises:
        DataError: the file is damaged, too large, or not a real 2D or 3D image with a valid affine.
    """
    path = Path(path)
    header, stored = read_stored(path, limits, with_channels=channel is not None)
    if channel is not None:
        if stored.ndim < 4 or channel >= stored.shape[3]:
            raise DataError(
                f"{path}: has the shape {stored.shape}, wanted a channel {channel} along its fourth axis; "
                "correct the channels in dataset.json"
            )
        stored = stored[:, :, :, channel]
        header["dim"] = [3, *stored.shape[:3], 1, 1, 1, 1]
    geometry = geometry_of(header)
    affine = _affine_of(path, geometry)
    array = _scaled(path, stored, float(header["scl_slope"]), float(header["scl_inter"]))
    shape = (*stored.shape, 1)[:3] if stored.ndim == 2 else stored.shape[:3]
    return Volume(array.reshape(shape, order="F"), affine, stored.shape, geometry)


def read_labels(path: Path | str, *, limits: Limits = LIMITS) -> Volume:
    """Read a label map: as `read_nifti`, with every value an integer in [0, 255] (as float32).

    Raises:
        DataError: as `read_nifti`, or a value is not a label.
    """
    return as_labels(path, read_nifti(path, limits=limits))


def as_labels(where: Path | str, volume: Volume) -> Volume:
    """Return a volume of labels, as float32, after checking that every value is an integer in [0, 255].

    Args:
        where: What the message names.
        volume: The volume.

    Raises:
        DataError: A value is not a label.
    """
    labels = np.rint(volume.array).astype(np.float32)
    # 1e-3 covers the rounding of a slope such as 1/255; a resampled mask differs by more.
    wrong = (np.abs(volume.array - labels) > 1e-3) | (labels < 0) | (labels > 255)
    if wrong.any():
        raise DataError(
            f"{where}: holds the value {volume.array[wrong][0]:g}, wanted integer labels from 0 to 255; "
            "is this an image, or a mask resampled without nearest-neighbour?"
        )
    return Volume(labels, volume.affine, volume.shape_on_disk, volume.geometry)


def from_nibabel(image: nib.spatialimages.SpatialImage) -> Volume:
    """Return an image of nibabel as a volume: of a NIfTI image, what `read_nifti` reads from its file.

    Raises:
        DataError: It is not a real 2D or 3D image with a valid affine, or a value is not finite.
    """
    where, data = "nibabel image", image.dataobj
    if len(image.shape) < 2 or min(image.shape) < 1 or max(image.shape[3:], default=1) > 1:
        raise DataError(
            f"{where}: has the shape {image.shape}, wanted 2D or 3D and no size below 1; take one volume "
            "of it (image.slicer[..., 0])"
        )
    own = np.asarray(image.affine, dtype=np.float64)
    geometry = header_for(image.shape, own)
    if isinstance(image.header, nib.Nifti1Header) and image.header.is_single:  # not of a .hdr/.img pair
        header = geometry_of(image.header)
        if np.allclose(header.get_best_affine(), own, atol=1e-5):  # else it was changed in memory
            geometry = header
    affine = _affine_of(where, geometry)
    if isinstance(data, nib.arrayproxy.ArrayProxy):  # scaled here, with the rounding of `read_nifti`
        array = _scaled(where, data.get_unscaled(), float(data.slope), float(data.inter))
    else:
        array = checked_values(where, np.asarray(data)).astype(np.float32)
    shape = (*array.shape, 1)[:3] if array.ndim == 2 else array.shape[:3]
    return Volume(array.reshape(shape, order="F"), affine, image.shape, geometry)


def to_nibabel(volume: Volume) -> nib.Nifti1Image:
    """Return a volume as a NIfTI image of nibabel, with the header of the file that `write_nifti` writes."""
    header = _header_of(volume, volume.description)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    header.set_data_dtype(volume.array.dtype)
    array = volume.array.reshape(volume.shape_on_disk, order="F")
    return kind(array, header.get_best_affine(), header)


def _header_of(like: Volume, description: str) -> nib.Nifti1Header:
    """Return the header of a file with the geometry and the shape on disk of a volume."""
    if like.geometry is None:
        header = header_for(like.shape_on_disk, like.affine)
    else:
        header = geometry_of(like.geometry)
        pixdim = header["pixdim"].copy()
        header.set_data_shape(like.shape_on_disk)
        header["pixdim"] = pixdim  # set_data_shape forgets the third of a 2D file, which its qform needs
    header["descrip"] = description.encode("ascii", "replace")[:79]
    return header


def _affine_of(path: Path | str, geometry: nib.Nifti1Header) -> Float64[np.ndarray, "4 4"]:
    """Return the affine in mm: sform, else qform, else voxel size (NIfTI-1, methods 3, 2, 1)."""
    try:
        affine = np.array(geometry.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(
            f"{path}: its qform is not a rotation ({error}); correct it and save again"
        ) from error
    affine[:3] *= _MILLIMETRES.get(int(geometry["xyzt_units"]), 1.0)
    check_affine(path, affine)
    return affine


def qform_of(volume: Volume) -> Float64[np.ndarray, "4 4"] | None:
    """Return the affine of the qform in mm, if a NIfTI has both forms (the sform is used)."""
    geometry = volume.geometry
    if geometry is None or not int(geometry["sform_code"]) or not int(geometry["qform_code"]):
        return None
    try:
        affine = np.array(geometry.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    affine[:3] *= _MILLIMETRES.get(int(geometry["xyzt_units"]), 1.0)
    return affine if np.isfinite(affine).all() else None


def _scaled(
    path: Path | str, stored: Shaped[np.ndarray, "*shape"], slope: float, intercept: float
) -> Float32[np.ndarray, "*shape"]:
    """Return `stored * slope + intercept`, all finite. Slope 0 (NIfTI-1) or NaN (nibabel) means unscaled."""
    if slope == 0 or math.isnan(slope):
        slope, intercept = 1.0, 0.0
    unscaled = slope == 1 and intercept == 0
    with np.errstate(over="ignore", invalid="ignore"):
        array = (stored if unscaled else stored * np.float64(slope) + intercept).astype(np.float32)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        cause = "values" if unscaled else f"values after its slope {slope:g} and intercept {intercept:g}"
        raise DataError(
            f"{path}: {bad:,} of {array.size:,} {cause} are NaN, infinite or beyond float32, "
            "wanted finite ones; replace them (numpy.nan_to_num) and save again"
        )
    return array


def write_nifti(
    path: Path | str,
    array: Shaped[np.ndarray, "*shape"],
    like: Volume | None = None,
    *,
    affine: Float64[np.ndarray, "4 4"] | None = None,
    description: str = "",
) -> None:
    """Write a NIfTI file atomically: uint8 stays uint8 (labels), other types become float32.

    With `like`, the file gets the geometry and the shape on disk of that volume; bit for bit if it was NIfTI.
    With `affine`, sform and qform are set to it; an affine with shear is written as sform alone.

    Args:
        path: ends in .nii or .nii.gz; its folder is created if missing.
        array: (x, y, z) or, with `affine`, also (x, y).
        like: the volume whose geometry the array has.
        affine: voxel index to RAS+ mm, if `like` is not given.
        description: at most 79 ASCII characters; no text of a source file is copied.

    Raises:
        DataError: the values are not finite, or the name or folder is wrong.
        ShapeError: the array does not have the shape of `like`.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: wanted a name that ends in .nii or .nii.gz")
    if (like is None) == (affine is None):
        raise DataError(f"{path}: wanted either a volume to be like or an affine, got both or neither")
    if like is not None and array.shape != like.array.shape:
        raise ShapeError(f"{path}: the array is {array.shape}, the volume it belongs to {like.array.shape}")
    if like is None and array.ndim not in (2, 3):
        raise ShapeError(f"{path}: the array is {array.shape}, wanted (x, y) or (x, y, z)")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: not written, because the values hold NaN or infinity")
    values = array if array.dtype == np.uint8 else array.astype("<f4")
    if like is not None:
        header = _header_of(like, description)
    else:
        header = header_for(array.shape, np.asarray(affine, dtype=np.float64))
        header["descrip"] = description.encode("ascii", "replace")[:79]
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    content = header.binaryblock + bytes(4) + values.tobytes(order="F")
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)  # mtime 0: equal volumes are equal files
    write_bytes(path, content)

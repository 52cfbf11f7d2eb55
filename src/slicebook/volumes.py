"""Volumes in and out: NIfTI to array + affine + spacing in mm, and back.

Axes are the file's own, and stay so: `array[x, y, z]` with an affine from voxel index to RAS+ millimetres.
`Orientation` says how to look at a volume as slices, and is undone exactly. DICOM is in `dicom.py`.

Files are not trusted. Sizes are checked against the header before anything is allocated, gzip is read to its
checksum, and what cannot be an image is a `DataError` with the way out. A header's free text (description,
file names, extensions) never reaches a `Volume`, so it cannot reach what is written.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Shaped
from nibabel.spatialimages import HeaderDataError

from slicebook.atomic import write_bytes
from slicebook.errors import DataError, ShapeError
from slicebook.nifti_file import LIMITS as LIMITS
from slicebook.nifti_file import Limits as Limits
from slicebook.nifti_file import geometry_of, header_for, read_stored

Plane = Literal["axial", "sagittal", "coronal"]

# By world axis (R, A, S): the plane whose slices are stacked along it.
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")

# World axis and sign of increasing index of (slice, row, column), as radiologists look: right is on the left.
_DISPLAY: dict[Plane, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, +1), (1, -1), (0, -1)),  # slices I→S, rows A→P, columns R→L
    "coronal": ((1, -1), (2, -1), (0, -1)),  # slices A→P, rows S→I, columns R→L
    "sagittal": ((0, -1), (2, -1), (1, -1)),  # slices R→L, rows S→I, columns A→P
}

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI xyzt_units: unknown, metre, mm, micrometre


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its place in the patient.

    Attributes:
        array: intensities on the file's own axes; finite. A 2D file has one z.
        affine: voxel index (x, y, z, 1) to RAS+ millimetres.
        shape_on_disk: the file's own shape, with the trailing ones that `array` does not show.
        geometry: a NIfTI header with geometry and nothing else, to write it back bit for bit; none for DICOM.
    """

    array: Float32[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    shape_on_disk: tuple[int, ...]
    geometry: nib.Nifti1Header | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y and z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


# --- NIfTI in


def read_nifti(path: Path | str, *, limits: Limits = LIMITS) -> Volume:
    """Read a 2D or 3D NIfTI-1 or NIfTI-2 file (.nii, .nii.gz; which of the two is told by its content).

    Raises:
        DataError: the file is damaged, too large, or no real 2D or 3D image with a usable affine.
    """
    path = Path(path)
    header, stored = read_stored(path, limits)
    geometry = geometry_of(header)
    affine = _affine_of(path, geometry)
    array = _scaled(path, stored, float(header["scl_slope"]), float(header["scl_inter"]))
    shape = (*stored.shape, 1)[:3] if stored.ndim == 2 else stored.shape[:3]
    return Volume(array.reshape(shape, order="F"), affine, stored.shape, geometry)


def read_labels(path: Path | str, *, limits: Limits = LIMITS) -> Volume:
    """Read a label map: the same as `read_nifti`, with every value an integer in [0, 255] (as float32).

    Raises:
        DataError: as `read_nifti`, or a value is no label.
    """
    volume = read_nifti(path, limits=limits)
    labels = np.rint(volume.array)
    # 1e-3: what a slope such as 1/255 loses in rounding; a resampled mask is further off.
    wrong = (np.abs(volume.array - labels) > 1e-3) | (labels < 0) | (labels > 255)
    if wrong.any():
        raise DataError(
            f"{path}: holds the value {volume.array[wrong][0]:g}, wanted integer labels from 0 to 255; "
            "is this an image, or a mask resampled without nearest-neighbour?"
        )
    return Volume(labels, volume.affine, volume.shape_on_disk, volume.geometry)


def _affine_of(path: Path, geometry: nib.Nifti1Header) -> Float64[np.ndarray, "4 4"]:
    """Return sform, else qform, else what the voxel size alone tells, in mm (NIfTI-1, methods 3, 2, 1)."""
    try:
        affine = np.array(geometry.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(f"{path}: its qform is no rotation ({error}); mend it and save again") from error
    affine[:3] *= _MILLIMETRES.get(int(geometry["xyzt_units"]), 1.0)
    check_affine(path, affine)
    return affine


def qform_of(volume: Volume) -> Float64[np.ndarray, "4 4"] | None:
    """Return the affine of the qform, in mm, where a NIfTI has both forms and the sform is the one used."""
    geometry = volume.geometry
    if geometry is None or not int(geometry["sform_code"]) or not int(geometry["qform_code"]):
        return None
    try:
        affine = np.array(geometry.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    affine[:3] *= _MILLIMETRES.get(int(geometry["xyzt_units"]), 1.0)
    return affine if np.isfinite(affine).all() else None


def check_affine(path: Path, affine: Float64[np.ndarray, "4 4"]) -> None:
    """Raise `DataError` unless the affine is finite and spans the three dimensions of space."""
    axes = affine[:3, :3]
    volume = float(np.prod(np.linalg.norm(axes, axis=0))) if np.isfinite(affine).all() else 0.0
    if not 0 < volume < np.inf or abs(np.linalg.det(axes)) < 1e-3 * volume:
        raise DataError(
            f"{path}: its affine {axes.tolist()} is not finite or has parallel or empty axes, wanted three "
            "directions in space; copy the geometry from the original image"
        )


def _scaled(
    path: Path, stored: Shaped[np.ndarray, "*shape"], slope: float, intercept: float
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


# --- NIfTI out


def write_nifti(
    path: Path | str,
    array: Shaped[np.ndarray, "*shape"],
    like: Volume | None = None,
    *,
    affine: Float64[np.ndarray, "4 4"] | None = None,
    description: str = "",
) -> None:
    """Write a NIfTI file whole or not at all: uint8 stays uint8 (labels), the rest becomes float32.

    With `like`, the file gets its geometry and its shape on disk; from a NIfTI, bit for bit. With
    `affine`, both sform and qform say it; a sheared one is sform alone, as a qform cannot.

    Args:
        path: ends in .nii or .nii.gz; its folder is made where it is missing.
        array: (x, y, z) or, with `affine`, also (x, y).
        like: the volume whose place in space the array has.
        affine: voxel index to RAS+ mm, if there is no `like`.
        description: at most 79 ASCII characters of the caller's; nothing of a source's text is copied.

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
    if like is not None and like.geometry is not None:
        header = geometry_of(like.geometry)
        pixdim = header["pixdim"].copy()
        header.set_data_shape(like.shape_on_disk)
        header["pixdim"] = pixdim  # set_data_shape forgets the third of a 2D file, which its qform needs
    elif like is not None:
        header = header_for(like.shape_on_disk, like.affine)
    else:
        header = header_for(array.shape, np.asarray(affine, dtype=np.float64))
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = description.encode("ascii", "replace")[:79]
    content = header.binaryblock + bytes(4) + values.tobytes(order="F")
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)  # mtime 0: equal volumes are equal files
    write_bytes(path, content)


# --- Slices


@dataclass(frozen=True)
class Orientation:
    """How a volume's own axes are shown as slices.

    Attributes:
        axes: the volume's axes that become (slice, row, column).
        flips: whether each of them is shown backwards.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def orientation_of(volume: Volume, plane: Plane | None = None) -> Orientation:
    """Return how to show a volume, in radiological convention.

    Axial slices go I→S with rows A→P and columns R→L; coronal ones A→P with rows S→I and columns R→L;
    sagittal ones R→L with rows S→I and columns A→P. An oblique volume is shown on its own axes, each taken
    for the nearest anatomical one.

    Args:
        volume: its shape and affine decide.
        plane: as asked, or none for the plane it was acquired in. As stacked for DICOM; across the one slice
            of a 2D file; else across the widest spacing (unless over 1 % wider, the last axis).
    """
    found = nib.orientations.io_orientation(volume.affine)  # for each own axis: (world axis, sign)
    if plane is None:
        plane = PLANES[int(found[_slice_axis(volume), 0])]
    own_axis = {int(world): (own, int(sign)) for own, (world, sign) in enumerate(found)}
    (s, s_flip), (r, r_flip), (c, c_flip) = (
        (own_axis[world][0], own_axis[world][1] != sign) for world, sign in _DISPLAY[plane]
    )
    return Orientation((s, r, c), (s_flip, r_flip, c_flip))


def _slice_axis(volume: Volume) -> int:
    singles = [axis for axis in (2, 1, 0) if volume.array.shape[axis] == 1]
    if singles:
        return singles[0]
    if volume.geometry is None:
        return 2  # read_dicom_series stacks along z
    widest = int(np.argmax(volume.spacing))
    return widest if volume.spacing[widest] > 1.01 * volume.spacing[2] else 2


def plane_of(volume: Volume, orientation: Orientation) -> Plane:
    """Return the plane that the slices of `orientation` lie in."""
    return PLANES[int(nib.orientations.io_orientation(volume.affine)[orientation.axes[0], 0])]


def slice_spacing(volume: Volume, orientation: Orientation) -> tuple[float, float, float]:
    """Return the distance between slices, rows and columns, in mm."""
    s, r, c = (volume.spacing[axis] for axis in orientation.axes)
    return s, r, c


def to_slices(array: Shaped[np.ndarray, "x y z"], orientation: Orientation) -> Shaped[np.ndarray, "n h w"]:
    """Return a view of a volume's array as (slice, row, column)."""
    slices: np.ndarray[Any, Any] = array.transpose(orientation.axes)[_reversed(orientation)]
    return slices


def from_slices(slices: Shaped[np.ndarray, "n h w"], orientation: Orientation) -> Shaped[np.ndarray, "x y z"]:
    """Return a view of slices on the volume's own axes: the exact inverse of `to_slices`."""
    array: np.ndarray[Any, Any] = slices[_reversed(orientation)].transpose(np.argsort(orientation.axes))
    return array


def _reversed(orientation: Orientation) -> tuple[Any, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in orientation.flips)

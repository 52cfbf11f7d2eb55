"""Volumes in memory, and how they are displayed as slices.

The axes are those of the file: `array[x, y, z]` with an affine from voxel index to RAS+ millimetres.
`Orientation` describes the view as slices and is inverted exactly. Free text of a header (description, file
names, extensions) is never part of a `Volume`, so that it is not written to output files.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8

from slicebook.errors import DataError, ShapeError

Plane = Literal["axial", "sagittal", "coronal"]

# By world axis (R, A, S): the plane whose slices are stacked along it.
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")

# World axis and sign of increasing index of (slice, row, column), as radiologists look: right is on the left.
_DISPLAY: dict[Plane, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, +1), (1, -1), (0, -1)),  # slices I→S, rows A→P, columns R→L
    "coronal": ((1, -1), (2, -1), (0, -1)),  # slices A→P, rows S→I, columns R→L
    "sagittal": ((0, -1), (2, -1), (1, -1)),  # slices R→L, rows S→I, columns A→P
}


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its geometry.

    Attributes:
        array: finite intensities on the file's axes. A 2D file has one z.
        affine: voxel index (x, y, z, 1) to RAS+ millimetres.
        shape_on_disk: the shape in the file, including trailing ones that `array` does not have.
        geometry: a NIfTI header with geometry fields only, to write them back bit for bit; none for DICOM
            and for arrays.
        description: what a file of it says in its header, such as that it is synthetic; empty for volumes
            that were read.
    """

    array: Float32[np.ndarray, "x y z"] | UInt8[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    shape_on_disk: tuple[int, ...]
    geometry: nib.Nifti1Header | None = None
    description: str = ""

    @classmethod
    def from_slices(
        cls, slices: Shaped[np.ndarray, ...], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> Volume:
        """Make a volume of an array of slices, as displayed.

        The slices are taken as axial ones in radiological convention (I→S, rows A→P, columns R→L), with the
        volume's centre at the origin. `slices()` returns them again.

        Args:
            slices: (slices, rows, columns), or (rows, columns) of one slice. uint8 stays uint8 (labels),
                other types become float32.
            spacing: Distance between slices, rows and columns, in mm.

        Raises:
            DataError: A value is not a finite real number of float32, or the spacing is not positive.
            ShapeError: The array has another number of dimensions, or a side of 0.
        """
        if slices.ndim not in (2, 3) or 0 in slices.shape:
            raise ShapeError(
                f"an array of shape {slices.shape}, wanted (slices, rows, columns) or (rows, columns)"
            )
        if len(spacing) != 3 or not all(0 < side < np.inf for side in spacing):
            raise DataError(
                f"spacing {tuple(spacing)}: wanted the distances between slices, rows and columns in mm"
            )
        shown = slices[None] if slices.ndim == 2 else slices
        counts, sides = np.array(shown.shape)[[2, 1, 0]], np.array(spacing, np.float64)[[2, 1, 0]]
        affine = np.diag([*sides, 1.0])
        affine[:3, 3] = sides * (1 - counts) / 2
        array = np.ascontiguousarray(from_slices(checked_values("array", shown), AXIAL))
        return cls(array, affine, array.shape)

    def slices(self, plane: Plane | None = None) -> Shaped[np.ndarray, "n h w"]:
        """Return the array as (slice, row, column), as displayed in radiological convention.

        Args:
            plane: Plane of the slices; the acquired one by default.
        """
        return np.ascontiguousarray(to_slices(self.array, orientation_of(self, plane)))

    def to_nibabel(self) -> nib.Nifti1Image:
        """Return the volume as an image of nibabel, with its geometry and description."""
        from slicebook.io.nifti import to_nibabel  # which imports this module

        return to_nibabel(self)

    def write(self, path: Path | str) -> None:
        """Write the volume to a NIfTI file, completely or not at all; its folder is created if missing.

        Args:
            path: Ends in .nii or .nii.gz.

        Raises:
            DataError: The name has another ending, or the file cannot be written.
        """
        from slicebook.io.nifti import write_nifti  # which imports this module

        write_nifti(path, self.array, self, description=self.description)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y and z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def checked_values(where: Path | str, values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Return values as float32, uint8 as it is; refuse what float32 cannot represent.

    Raises:
        DataError: Values that are complex or no numbers, NaN, infinite or beyond float32.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where}: holds values of type {values.dtype}, wanted real numbers")
    with np.errstate(over="ignore"):
        array = values.astype(np.float32)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"{where}: {bad:,} of {array.size:,} values are NaN, infinite or beyond float32, wanted finite "
            "ones; replace them (numpy.nan_to_num)"
        )
    return array


def check_affine(path: Path | str, affine: Float64[np.ndarray, "4 4"]) -> None:
    """Raise `DataError` unless the affine is finite and spans the three dimensions of space."""
    axes = affine[:3, :3]
    volume = float(np.prod(np.linalg.norm(axes, axis=0))) if np.isfinite(affine).all() else 0.0
    if not 0 < volume < np.inf or abs(np.linalg.det(axes)) < 1e-3 * volume:
        raise DataError(
            f"{path}: its affine {axes.tolist()} is not finite or has parallel or empty axes, wanted three "
            "directions in space; copy the geometry from the original image"
        )


@dataclass(frozen=True)
class Orientation:
    """How the axes of a volume are displayed as slices.

    Attributes:
        axes: the volume's axes that become (slice, row, column).
        flips: whether each of them is reversed.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


AXIAL = Orientation((2, 1, 0), (False, True, True))
"""Of a volume whose axes go to the right, to the front and upwards (RAS+)."""


def orientation_of(volume: Volume, plane: Plane | None = None) -> Orientation:
    """Return how to display a volume, in radiological convention.

    Axial slices go I→S with rows A→P and columns R→L; coronal ones A→P with rows S→I and columns R→L;
    sagittal ones R→L with rows S→I and columns A→P. An oblique volume is displayed on its own axes, each
    assigned to the nearest anatomical one.

    Args:
        volume: the volume.
        plane: the plane of the slices; by default the plane of acquisition: the stacking axis of DICOM, the
            single slice of a 2D file, else the axis with the widest spacing (the last axis within 1 %).
    """
    nearest = nib.orientations.io_orientation(volume.affine)  # per axis of the file: (world axis, sign)
    if plane is None:
        plane = PLANES[int(nearest[_slice_axis(volume), 0])]
    own_axis = {int(world): (own, int(sign)) for own, (world, sign) in enumerate(nearest)}
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

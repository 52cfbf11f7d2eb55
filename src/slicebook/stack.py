"""Volumes as slices in [-1, 1], and back with their own geometry and intensity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from slicebook.dicom import find_dicom_series, read_dicom_series
from slicebook.dicom_file import is_dicom
from slicebook.errors import DataError
from slicebook.preparation import IntensityMap
from slicebook.volumes import (
    Orientation,
    Plane,
    Volume,
    from_slices,
    orientation_of,
    read_nifti,
    slice_spacing,
    to_slices,
    write_nifti,
)


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume laid out as slices in [-1, 1], with the way back."""

    volume: Volume
    orientation: Orientation
    intensity: IntensityMap
    slices: Float32[np.ndarray, "n h w"]

    @classmethod
    def of(cls, volume: Volume, plane: Plane | None = None) -> Stack:
        """Lay out a volume as acquired, or a NIfTI volume by `plane`."""
        orientation = orientation_of(volume, plane if volume.geometry is not None else None)
        intensity = IntensityMap.fit(volume.array)
        slices = np.ascontiguousarray(to_slices(intensity.forward(volume.array), orientation))
        return cls(volume, orientation, intensity, slices)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.slices.shape[1], self.slices.shape[2]

    @property
    def aspect(self) -> float:
        """Distance between rows over that between columns."""
        _, row_mm, column_mm = slice_spacing(self.volume, self.orientation)
        return row_mm / column_mm

    def write(self, path: Path, slices: Float32[np.ndarray, "n h w"], description: str) -> None:
        """Write other slices in [-1, 1] in place of these, in this volume's geometry and intensity."""
        self.write_values(path, self.intensity.inverse(slices), description)

    def write_values(self, path: Path, values: Float32[np.ndarray, "n h w"], description: str) -> None:
        """Write a number a pixel, such as a map over the slices, in this volume's geometry."""
        array = np.ascontiguousarray(from_slices(values, self.orientation))
        write_nifti(path, array, self.volume, description=description)


def read_volumes(source: str | Path, plane: Plane | None = None) -> Iterator[tuple[str, Volume]]:
    """Yield each volume of a file or folder with a name to write it under.

    Raises:
        DataError: The source is absent, damaged, or holds no volume (of that plane).
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: does not exist; give a NIfTI file or a folder of DICOM files")
    if path.is_file():
        yield (path.stem, read_dicom_series([path])) if is_dicom(path) else (stem_of(path), read_nifti(path))
        return
    files = sorted(item for item in path.rglob("*") if item.name.endswith((".nii", ".nii.gz")))
    if files:
        for file in files:
            yield "-".join([*file.relative_to(path).parts[:-1], stem_of(file)]), read_nifti(file)
        return
    series = [item for item in find_dicom_series(path) if plane in (None, item.plane)]
    if not series:
        raise DataError(f"{path}: holds no NIfTI file and no {plane or 'DICOM'} series; give another folder")
    for number, item in enumerate(series, start=1):
        yield f"series-{number:02}-{item.plane}", read_dicom_series(item)


def spare_originals(source: Path, out: Path) -> None:
    """Refuse a folder in which something written could take an original's place.

    Raises:
        DataError: `out` is such a folder.
    """
    taken = source.is_dir() and out.resolve().is_relative_to(source.resolve())
    if taken or (out / f"{stem_of(source)}.nii.gz").resolve() == source.resolve():
        raise DataError(
            f"{out}: the originals lie here, and none may be overwritten; choose a folder outside {source}"
        )


def stem_of(path: Path) -> str:
    """Name of a NIfTI file without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".nii")

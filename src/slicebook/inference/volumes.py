"""Volumes as slices in [-1, 1], and back to their geometry and intensity."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from slicebook.data.layouts.registry import image_files
from slicebook.data.transforms import IntensityMap
from slicebook.errors import DataError
from slicebook.io.dicom_file import is_dicom
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.discovery import find_files, first_names, nifti_stem
from slicebook.io.nifti import read_nifti
from slicebook.io.resumable import hash_files
from slicebook.io.volume import (
    Orientation,
    Plane,
    Volume,
    from_slices,
    orientation_of,
    slice_spacing,
    to_slices,
)

ENDINGS = (".nii.gz", ".csv", "")  # outputs of a volume: map or image, scores, folder of pictures
LONGEST_NAME = 255  # bytes; the limit of common file systems


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume as slices in [-1, 1], with the inverse mapping."""

    volume: Volume
    orientation: Orientation
    intensity: IntensityMap
    slices: Float32[np.ndarray, "n h w"]

    @classmethod
    def of(cls, volume: Volume, plane: Plane | None = None) -> Stack:
        """Slice a volume in its acquired plane, or a NIfTI volume in `plane`."""
        orientation = orientation_of(volume, plane if volume.geometry is not None else None)
        array = volume.array.astype(np.float32, copy=False)
        intensity = IntensityMap.fit(array)
        slices = np.ascontiguousarray(to_slices(intensity.forward(array), orientation))
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

    def volume_of(self, slices: Float32[np.ndarray, "n h w"], description: str) -> Volume:
        """Return slices in [-1, 1] as a volume with the geometry and intensity of this one."""
        return self.volume_of_values(self.intensity.inverse(slices), description)

    def volume_of_values(self, values: Float32[np.ndarray, "n h w"], description: str) -> Volume:
        """Return values per pixel, such as a heatmap, as a volume with the geometry of this one."""
        array = np.ascontiguousarray(from_slices(values, self.orientation))
        return replace(self.volume, array=array, description=description)


@dataclass(frozen=True)
class ListedVolume:
    """A volume that has not been read yet.

    Attributes:
        name: Name of its outputs; unique in a listing, ignoring case.
        read: Reads the volume.
        files: Its files.
        part: Which part of them it is; empty for the whole.
    """

    name: str
    read: Callable[[], Volume]
    files: tuple[Path, ...]
    part: str = ""

    def digest(self) -> str:
        """Return the hash of its content."""
        return hash_files(self.files) + self.part


def list_volumes(source: str | Path, plane: Plane | None = None) -> tuple[ListedVolume, ...]:
    """List the volumes of a file or folder, with the names of their outputs. Reads no voxels.

    A NIfTI file keeps its name, after those of the folders it lies in. DICOM series are numbered, because
    their file names may contain the patient's name. In a folder, masks and files that its layout does not
    know are passed over with a warning, as are broken links and links to folders.

    Raises:
        DataError: The source does not exist or holds no volume (of that plane); or two outputs would have the
            same name, or a name is too long.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: does not exist; give a NIfTI file or a folder of DICOM files")
    if path.is_file():
        if is_dicom(path):
            return (ListedVolume("series-01", partial(read_dicom_series, [path]), (path,)),)
        return _named({nifti_stem(path): [path]})
    discovered = find_files(path)
    for line in replace(discovered, hidden=()).passed_over():
        warnings.warn(f"{path}: {line}", stacklevel=2)
    images, layout = image_files(discovered)
    if others := sorted(set(discovered.nifti) - set(images)):
        shown = first_names([file.relative_to(path).as_posix() for file in others])
        warnings.warn(
            f"{path}: {len(others)} NIfTI files were passed over, which are masks or unknown to the layout "
            f"{layout}: {shown}; give such a file alone to read it",
            stacklevel=2,
        )
    files: dict[str, list[Path]] = {}
    for file in images:
        files.setdefault("-".join([*file.relative_to(path).parts[:-1], nifti_stem(file)]), []).append(file)
    if files:
        return _named(files)
    skipped: Counter[str] = Counter()
    listed = find_dicom_series(path, skipped=lambda _, reason: skipped.update([reason]))
    series = [item for item in listed if plane in (None, item.plane)]
    if not series:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise DataError(
            f"{path}: holds no NIfTI file and no {plane or 'DICOM'} series"
            f"{f' (passed over: {reasons})' if reasons else ''}; give another folder"
        )
    return tuple(
        ListedVolume(
            f"series-{number:02}-{item.plane}",
            partial(read_dicom_series, item),
            item.files,
            f" frames {item.frame_numbers}",
        )
        for number, item in enumerate(series, start=1)
    )


def read_single(source: str | Path, plane: Plane | None = None) -> Volume:
    """Read the one volume of a file or folder.

    Raises:
        DataError: As `list_volumes`, or there are several volumes.
    """
    listed = list_volumes(source, plane)
    if len(listed) != 1:
        raise DataError(
            f"{source}: holds {len(listed)} volumes, wanted one; name one file, or choose by --plane"
        )
    return listed[0].read()


def _named(files: Mapping[str, Sequence[Path]]) -> tuple[ListedVolume, ...]:
    """List files by the names of their outputs, which must be unique."""
    owners: dict[str, Path] = {}
    for name, paths in files.items():
        for path in paths:
            if len(os.fsencode(f"{name}{ENDINGS[0]}")) > LONGEST_NAME:
                raise DataError(
                    f"{path}: its output would have a name of more than {LONGEST_NAME} bytes; shorten the "
                    "names of the file and its folders, or give the file alone"
                )
            for ending in ENDINGS:
                # File systems may ignore case, and may store ü composed or decomposed.
                output = unicodedata.normalize("NFC", f"{name}{ending}").casefold()
                if output in owners:
                    raise DataError(
                        f"{path}: its output would take the place of that of {owners[output]} ({output}); "
                        "rename one of them, or give each alone, with a folder of its own"
                    )
                owners[output] = path
    return tuple(
        ListedVolume(name, partial(read_nifti, path), (path,))
        for name, paths in files.items()
        for path in paths
    )


def spare_originals(source: Path, out: Path) -> None:
    """Refuse a folder in which an output could overwrite an original.

    Raises:
        DataError: `out` is such a folder.
    """
    origin, folder = source.resolve(), out.resolve()
    inside = source.is_dir() and folder.is_relative_to(origin)
    same_name = f"{nifti_stem(source)}.nii.gz".casefold() == source.name.casefold()
    if inside or (same_name and folder == origin.parent):
        raise DataError(
            f"{out}: the originals lie here, and none may be overwritten; choose a folder outside {source}"
        )

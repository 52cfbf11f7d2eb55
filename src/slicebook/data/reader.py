"""Read the files of a volume as slices, and report those that cannot be used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from slicebook.data.layouts.sources import FolderScan, Source, Unreadable
from slicebook.errors import DataError
from slicebook.io.dicom_series import DicomSeries, read_dicom_series
from slicebook.io.discovery import is_itk_name, is_picture_name, volume_stem
from slicebook.io.formats.dicom_seg import read_segmentation
from slicebook.io.formats.itk import read_itk
from slicebook.io.formats.pictures import read_picture
from slicebook.io.nifti import as_labels, qform_of, read_labels, read_nifti
from slicebook.io.volume import Plane, Volume, orientation_of, plane_of, slice_spacing, to_slices


@dataclass(frozen=True)
class Part:
    """The slices of one file, or of one DICOM series, in display orientation.

    Attributes:
        path: The file, or the first of the series.
        number: Index of its first slice within the volume.
        plane: The plane nearest to the slices.
        spacing: Between slices, rows and columns, in mm.
        digest: SHA-256 of the voxels; equal for a copy under another name, header or compression.
        blank: All voxels are equal.
        forms_disagree: Its sform and qform differ; the sform is used.
    """

    path: Path
    number: int
    images: Float32[np.ndarray, "n rows columns"]
    labels: UInt8[np.ndarray, "n rows columns"] | None
    plane: Plane
    spacing: tuple[float, float, float]
    digest: bytes
    blank: bool
    forms_disagree: bool = False

    @property
    def looks_like_a_mask(self) -> bool:
        """Whether the file was listed as an image but contains labels; see `is_label_map`."""
        return not self.blank and self.labels is None and is_label_map(self.images, self.path)


@dataclass(frozen=True)
class Misfit:
    """A file that can be read but not used, and the reason."""

    path: Path
    reason: str


def read_parts(source: Source, plane: Plane | None) -> Iterator[Part | Unreadable | Misfit]:
    """Read a source file by file. If a mask cannot be read, its image is left out too."""
    if source.series is not None:
        yield _read_series(source, source.series, plane)
        return
    for number, (path, mask_path) in enumerate(zip(source.images, source.labels, strict=True)):
        reading = path
        try:
            volume, mask = read_volume(path, source), None
            if mask_path is not None:
                reading = mask_path
                mask = read_mask(mask_path, source)
        except DataError as error:
            yield Unreadable(reading, str(error))
            continue
        part = _part(path, number, volume, mask, plane)
        reason = _misfit(part, volume, mask_path, mask, source.is_stack)
        yield Misfit(path, reason) if reason else part


def _read_series(source: Source, series: DicomSeries, plane: Plane | None) -> Part | Unreadable | Misfit:
    """Read a DICOM series with its mask."""
    mask_path = next(iter(source.labels), None)
    mask = None
    try:
        volume = read_dicom_series(series)
    except DataError as error:
        return Unreadable(source.images[0], str(error), is_series=True)
    if mask_path is not None:
        try:
            mask = read_segmentation(mask_path, volume, source.segments)
        except DataError as error:
            return Unreadable(mask_path, str(error), is_series=True)
    part = _part(source.images[0], 0, volume, mask, plane)
    reason = _misfit(part, volume, mask_path, mask, False)
    return Misfit(part.path, reason) if reason else part


def read_volume(path: Path, source: Source) -> Volume:
    """Read an image file of any format that is recognised by name.

    Raises:
        DataError: It cannot be read.
    """
    if is_picture_name(path):
        return read_picture(path, source.pixel_mm)
    return read_itk(path) if is_itk_name(path) else read_nifti(path, channel=source.channel)


def read_mask(path: Path, source: Source) -> Volume:
    """Read a mask of any format that is recognised by name.

    Raises:
        DataError: It cannot be read, or a value is not a label.
    """
    if is_picture_name(path):
        return as_labels(path, read_picture(path, source.pixel_mm, as_labels=True))
    return as_labels(path, read_itk(path)) if is_itk_name(path) else read_labels(path)


def count_files(scan: FolderScan) -> int:
    """Return the number of files, including masks and the files of DICOM series."""
    readable = sum(len(s.images) + sum(mask is not None for mask in s.labels) for s in scan.sources)
    return readable + len(scan.unreadable)


_DIGEST_ROWS = 16  # along x: volumes are stored with x fastest, and 16 float32 fill a cache line
_FEW_VALUES = 8  # fewer distinct values than any image
_SOME_VALUES = 32  # 5 bits: fewer than any image, if each value occurs often
_LABELS_NAME = re.compile(r"(^|[_.-])(segs?|masks?|labels?|dseg|gt|roi|annotations?|segmentations?)($|[_.-])")
_LABELS_FOLDER = re.compile(r"(labels?|masks?|segs?|segmentations?|annotations?|gt|ground_?truth)(tr|ts)?")


def is_label_map(images: Float32[np.ndarray, "n rows columns"], path: Path) -> bool:
    """Return whether an array holds labels and not intensities.

    An array of labels contains only whole numbers, and one of these holds: it has few distinct values for its
    size; it is constant over regions, where an image would have noise; or it has at most 256 distinct values
    and the file or folder has a name for masks.
    """
    if any((image != np.rint(image)).any() for image in images):
        return False
    low, high = float(images.min()), float(images.max())
    if high - low > 65_535:
        return False
    counts = np.zeros(int(high - low) + 1, np.int64)
    for image in images:  # slice by slice: a copy of the volume would double the memory
        counts += np.bincount((image - low).astype(np.int32).ravel(), minlength=len(counts))
    values = int(np.count_nonzero(counts))
    if values <= _FEW_VALUES:
        return True
    if values * 16 > images.size:
        return False  # too small to tell
    if values <= _SOME_VALUES and values * 64 <= images.size:
        return True
    folder, stem = path.parent.name.lower(), volume_stem(path).lower()
    if values <= 256 and low >= 0 and (_LABELS_NAME.search(stem) or _LABELS_FOLDER.fullmatch(folder)):
        return True
    return _constancy(images, low + np.argsort(counts)[-2:]) > 0.7


def _constancy(images: Float32[np.ndarray, "n rows columns"], ignored: Float64[np.ndarray, " v"]) -> float:
    """Return the fraction of neighbouring pixels in rows that are equal; ignored values are not counted.

    Args:
        images: Whole numbers.
        ignored: The two most frequent values: air, and the maximum of an image that is clipped.
    """
    pairs = equal = 0
    for image in images:
        left, right = image[:, :-1], image[:, 1:]
        inside = ~(np.isin(left, ignored) | np.isin(right, ignored))
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (left == right)))
    return equal / pairs if pairs >= 100 else 0.0


def _part(path: Path, number: int, volume: Volume, mask: Volume | None, plane: Plane | None) -> Part:
    orientation = orientation_of(volume, plane)
    same_shape = mask is not None and mask.array.shape == volume.array.shape
    array = volume.array
    return Part(
        path=path,
        number=number,
        images=to_slices(array, orientation),
        labels=to_slices(mask.array, orientation).astype(np.uint8) if mask and same_shape else None,
        plane=plane_of(volume, orientation),
        spacing=slice_spacing(volume, orientation),
        digest=_digest(array),
        blank=bool(array.min() == array.max()),
        forms_disagree=_disagreeing_qform(volume) is not None,
    )


def _digest(array: Float32[np.ndarray, "x y z"]) -> bytes:
    """Return the SHA-256 of the shape and the voxels in C order, without a copy of the volume."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for first in range(0, len(array), _DIGEST_ROWS):
        digest.update(np.ascontiguousarray(array[first : first + _DIGEST_ROWS]).data)
    return digest.digest()


def _misfit(
    part: Part, volume: Volume, mask_path: Path | None, mask: Volume | None, is_stack: bool
) -> str | None:
    """Return why an image that was read cannot be used, or None."""
    if is_stack and len(part.images) > 1:
        return f"{part.path}: shape {volume.shape_on_disk}, wanted a 2D slice; move whole volumes elsewhere"
    if not is_stack and part.looks_like_a_mask:
        return (
            f"{part.path}: holds {len(np.unique(part.images))} whole numbers only, so a label map, not an "
            "image; pair it with its image by --mask, or leave it out by --patient-regex"
        )
    if mask is None:
        return None
    apart = max(np.abs(_corners(volume) - _corners(mask)).max(), 0.0)
    if volume.array.shape == mask.array.shape and apart < 0.1 * min(volume.spacing):
        return None
    qform = _disagreeing_qform(volume)
    mask_qform = _disagreeing_qform(mask)
    if volume.array.shape == mask.array.shape and (qform is not None or mask_qform is not None):
        which = part.path if qform is not None else mask_path
        other = mask.affine if qform is not None else volume.affine
        form = qform if qform is not None else mask_qform
        fits = form is not None and np.allclose(form, other, atol=0.1 * min(volume.spacing))
        return (
            f"{mask_path}: the mask does not lie on its image {part.path}: sform and qform of {which} "
            f"disagree, and its sform is used{', but its qform would fit' if fits else ''}; give {which} one "
            "form that is right (nibabel: set_sform and set_qform), and do not resample"
        )
    return (
        f"{mask_path}: the mask does not lie on its image {part.path}: image shape {volume.array.shape}, "
        f"affine {_rounded(volume.affine)}; mask shape {mask.array.shape}, affine {_rounded(mask.affine)}; "
        "resample the mask to its image"
    )


def _disagreeing_qform(volume: Volume) -> Float64[np.ndarray, "4 4"] | None:
    """Return the qform if it is valid and places a voxel over a tenth of a voxel from the sform."""
    qform = qform_of(volume)
    if qform is None:
        return None
    indices = np.vstack([np.diag(np.array(volume.array.shape) - 1), np.zeros(3)])
    apart = indices @ (volume.affine - qform)[:3, :3].T + (volume.affine - qform)[:3, 3]
    return qform if np.abs(apart).max() > 0.1 * min(volume.spacing) else None


def _corners(volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the first and last voxel and the ends of the three axes, in mm."""
    indices = np.vstack([np.diag(np.array(volume.array.shape) - 1), np.zeros(3)])
    return np.asarray(indices @ volume.affine[:3, :3].T + volume.affine[:3, 3])


def _rounded(affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[float]]:
    rounded: list[list[float]] = affine[:3].round(3).tolist()
    return rounded

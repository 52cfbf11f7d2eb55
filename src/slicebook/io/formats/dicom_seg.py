"""Read DICOM SEG files as masks of an image series, by highdicom (the extra `dicom`)."""

# mypy: allow-untyped-calls

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset

from slicebook.errors import DataError
from slicebook.io.dicom_file import wrap_pydicom_errors
from slicebook.io.limits import LIMITS, Limits
from slicebook.io.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SegmentationHeader:
    """What a DICOM SEG says of itself.

    Attributes:
        path: The file.
        series_uids: Series Instance UIDs of the images that it segments.
        segments: Labels by segment number; never text that holds the patient's name or identifier.
    """

    path: Path
    series_uids: tuple[str, ...]
    segments: Mapping[int, str]


def can_read_segmentations() -> bool:
    """Return whether highdicom is installed."""
    return importlib.util.find_spec("highdicom") is not None


def read_segmentation_header(path: Path) -> SegmentationHeader | None:
    """Return what a DICOM SEG refers to; None if the file is a surface segmentation.

    Raises:
        DataError: The file is damaged.
    """
    tags = ["SOPClassUID", "ReferencedSeriesSequence", "SegmentSequence", "PatientID", "PatientName"]
    with wrap_pydicom_errors(path):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        if not header.get("SegmentSequence") or str(header.get("SOPClassUID")).endswith(".66.5"):
            return None
        uids = [str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence") or ()]
        segments = {int(item.SegmentNumber): _label_of(item, header) for item in header.SegmentSequence}
    return SegmentationHeader(path, tuple(dict.fromkeys(uids)), segments)


def _label_of(segment: Dataset, header: Dataset) -> str:
    """Return the label of a segment; the meaning of its code if the label may identify the patient."""
    label = str(segment.get("SegmentLabel") or "")
    private = [str(header.get("PatientID") or ""), *re.split(r"[\^= ]", str(header.get("PatientName") or ""))]
    if label and not any(len(text) > 2 and text.casefold() in label.casefold() for text in private):
        return label
    types = segment.get("SegmentedPropertyTypeCodeSequence")
    return str(types[0].get("CodeMeaning") or "") if types else f"segment {segment.SegmentNumber}"


def read_segmentation(
    path: Path, like: Volume, values: Mapping[int, int], *, limits: Limits = LIMITS
) -> Volume:
    """Return a DICOM SEG as labels on the grid of its images.

    Args:
        path: Binary or label map segmentation.
        like: The volume of the images.
        values: Label by segment number.
        limits: Limits on memory.

    Raises:
        DataError: The file is damaged or fractional, segments overlap, or it does not lie on the images.
    """
    import highdicom as hd

    with wrap_pydicom_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        _check(path, dataset, limits)
        segmentation = hd.seg.Segmentation.from_dataset(dataset, copy=False)
        try:
            volume = segmentation.get_volume(
                combine_segments=True, relabel=False, allow_missing_positions=True, dtype=np.uint8
            )
        except RuntimeError as error:
            raise DataError(
                f"{path}: its segments overlap, or its frames are no volume; save one label per voxel"
            ) from error
    lookup = np.zeros(256, dtype=np.uint8)
    for number, value in values.items():
        lookup[number] = value
    labels = _placed(path, lookup[volume.array], _LPS_TO_RAS @ volume.affine, like)
    return Volume(labels.astype(np.float32), like.affine, like.shape_on_disk)


def _check(path: Path, dataset: Dataset, limits: Limits) -> None:
    if str(dataset.get("SegmentationType")) == "FRACTIONAL":
        raise DataError(f"{path}: is a fractional segmentation, wanted a binary one; threshold it")
    size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
    limits.check(path, limits.max_bytes, size * 4, "")
    if max(int(item.SegmentNumber) for item in dataset.SegmentSequence) > 255:
        raise DataError(f"{path}: has segment numbers above 255, wanted 1 to 255; number them anew")


def _placed(
    path: Path,
    labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    like: Volume,
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return labels on the grid of `like`, of which theirs must be a part; axes may differ."""
    index = np.linalg.inv(like.affine) @ affine  # voxel of the labels to voxel of the images
    turn = np.rint(index[:3, :3])
    corner = np.array(labels.shape) - 1
    ends = np.stack([index[:3, 3], index[:3, :3] @ corner + index[:3, 3]])
    whole = np.rint(ends[0]), np.rint(ends[0]) + turn @ corner
    lowest, highest = np.minimum(*whole), np.maximum(*whole)
    is_turn = np.array_equal(np.abs(turn).sum(0), np.ones(3)) and np.array_equal(
        np.abs(turn).sum(1), np.ones(3)
    )
    inside = (lowest >= 0).all() and (highest < like.array.shape).all()
    if not (is_turn and inside and np.abs(ends - np.stack(whole)).max() < 0.1):
        raise DataError(
            f"{path}: the segmentation does not lie on the slices of its images; resample it to them"
        )
    axes = np.abs(turn).argmax(1)  # for each axis of the images, that of the labels
    turned = labels.transpose(axes)
    turned = turned[tuple(slice(None, None, int(turn[i, axes[i]])) for i in range(3))]
    placed = np.zeros(like.array.shape, dtype=np.uint8)
    placed[tuple(slice(int(low), int(high) + 1) for low, high in zip(lowest, highest, strict=True))] = turned
    return placed

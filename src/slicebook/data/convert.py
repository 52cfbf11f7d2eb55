"""Convert one volume for a prepared folder: read its files, map intensities, and write its slices.

The result depends on the volume alone, so that several processes can convert volumes, and an interrupted
`prepare` can take up the results of the volumes that it has converted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from slicebook.data.layouts.sources import Source, Unreadable
from slicebook.data.reader import Misfit, Part, read_parts
from slicebook.data.transforms import IntensityMap, crop_or_pad, resample
from slicebook.io.volume import Plane


@dataclass(frozen=True)
class ConvertedPart:
    """The slices of one file, or of one DICOM series, without their pixels.

    Attributes:
        path, number, plane, blank, forms_disagree: As of the `Part`.
        digest: SHA-256 of the voxels, hexadecimal.
        slices: Number of slices.
        rows, columns, row_mm, column_mm: Of the slices as they are written.
        blank_slices: Numbers, within the part, of slices whose pixels are all equal.
        labelled: Whether there is a mask.
        written: Whether the slices are among those written; copies of other files are not.
    """

    path: Path
    number: int
    plane: Plane
    digest: str
    blank: bool
    forms_disagree: bool
    slices: int
    rows: int
    columns: int
    row_mm: float
    column_mm: float
    blank_slices: tuple[int, ...]
    labelled: bool
    written: bool = True

    @property
    def pixels(self) -> int:
        """Number of pixels of all its slices."""
        return self.slices * self.rows * self.columns


@dataclass(frozen=True)
class ConvertedVolume:
    """What was found in the files of a volume, in their order.

    Attributes:
        parts: Per file: its slices, or why it cannot be used.
        low, high: Intensities mapped to -1 and 1.
        label_values: All values in the masks of the parts written.
    """

    parts: tuple[ConvertedPart | Unreadable | Misfit, ...]
    low: float
    high: float
    label_values: tuple[int, ...]

    @property
    def readable(self) -> list[ConvertedPart]:
        """The parts that can be used."""
        return [part for part in self.parts if isinstance(part, ConvertedPart)]

    @property
    def written(self) -> list[ConvertedPart]:
        """The parts whose slices are written."""
        return [part for part in self.readable if part.written]

    def without_slices(self) -> ConvertedVolume:
        """Return the record of the same files if none of their slices is written."""
        parts = [
            replace(part, written=False) if isinstance(part, ConvertedPart) else part for part in self.parts
        ]
        return replace(self, parts=tuple(parts), label_values=())

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        parts = [{"kind": type(part).__name__, **asdict(part), "path": str(part.path)} for part in self.parts]
        return {**asdict(self), "parts": parts}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ConvertedVolume:
        """Return the record of what `to_json` returned."""
        parts = [_KINDS[part["kind"]](**_fields_of(part)) for part in record["parts"]]
        return cls(tuple(parts), record["low"], record["high"], tuple(record["label_values"]))


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ConvertedPart, Unreadable, Misfit)}


def _fields_of(part: Mapping[str, Any]) -> dict[str, Any]:
    read = {"path": Path, "blank_slices": tuple}
    return {name: read.get(name, _same)(value) for name, value in part.items() if name != "kind"}


def _same(value: Any) -> Any:
    return value


def convert(
    source: Source,
    images: BinaryIO,
    labels: BinaryIO,
    *,
    plane: Plane | None,
    spacing: float | None,
    size: tuple[int, int] | None,
    percentiles: tuple[float, float],
    omitted: Collection[Path] = (),
) -> ConvertedVolume:
    """Read a volume and append its slices to two files.

    Args:
        source: The files of the volume.
        images: Gets the slices as little-endian float32 in [-1, 1].
        labels: Gets the masks as uint8, of those parts that have one.
        plane: Plane in which NIfTI volumes are sliced.
        spacing: Pixel size in mm to resample slices to; None for native pixels.
        size: Rows and columns to crop or pad slices to; None for no change.
        percentiles: Percentiles of the volume's intensities that are mapped to -1 and 1.
        omitted: Files whose slices are read but not used, because other files have the same voxels.
    """
    read: list[Part | Unreadable | Misfit] = list(read_parts(source, plane))
    used = [part for part in read if isinstance(part, Part) and part.path not in omitted]
    values = [part.images.ravel() for part in used]
    mapping = IntensityMap(0.0, 1.0)
    if values:
        mapping = IntensityMap.fit(values[0] if len(values) == 1 else np.concatenate(values), percentiles)
    del values
    found: set[int] = set()
    parts: list[ConvertedPart | Unreadable | Misfit] = []
    for part in read:
        if not isinstance(part, Part):
            parts.append(part)
            continue
        is_used = part.path not in omitted
        shape, row_mm, column_mm = _resampled_shape(part, spacing)
        blank_slices = _append(part, images, labels, mapping, shape, size) if is_used else ()
        if part.labels is not None and is_used:
            found.update(np.unique(part.labels).tolist())
        rows, columns = size or shape
        parts.append(
            ConvertedPart(
                path=part.path,
                number=part.number,
                plane=part.plane,
                digest=part.digest.hex(),
                blank=part.blank,
                forms_disagree=part.forms_disagree,
                slices=len(part.images),
                rows=rows,
                columns=columns,
                row_mm=row_mm,
                column_mm=column_mm,
                blank_slices=blank_slices,
                labelled=part.labels is not None,
                written=is_used,
            )
        )
    return ConvertedVolume(tuple(parts), mapping.low, mapping.high, tuple(sorted(found)))


def _append(
    part: Part,
    images: BinaryIO,
    labels: BinaryIO,
    mapping: IntensityMap,
    shape: tuple[int, int],
    size: tuple[int, int] | None,
) -> tuple[int, ...]:
    """Append the slices of a part and their masks; return the numbers of the blank slices."""
    blank_slices = []
    for number, native in enumerate(part.images):
        image = crop_or_pad(mapping.forward(resample(native, shape)), size or shape, fill=-1)
        images.write(image.astype("<f4").tobytes())
        if native.min() == native.max() or image.min() == image.max():
            blank_slices.append(number)
        if part.labels is not None:
            label = crop_or_pad(resample(part.labels[number], shape), size or shape, fill=0)
            labels.write(label.tobytes())
    return tuple(blank_slices)


def _resampled_shape(part: Part, spacing: float | None) -> tuple[tuple[int, int], float, float]:
    """Return rows and columns at a spacing, and the exact spacing (row, column) after rounding them."""
    rows, columns = part.images.shape[1:]
    _, row_mm, column_mm = part.spacing
    if spacing is None:
        return (rows, columns), row_mm, column_mm
    new_rows, new_columns = (
        max(round(rows * row_mm / spacing), 1),
        max(round(columns * column_mm / spacing), 1),
    )
    return (new_rows, new_columns), rows * row_mm / new_rows, columns * column_mm / new_columns

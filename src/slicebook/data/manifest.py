"""The files of a prepared folder, which `slicebook prepare` writes and training and evaluation read.

dataset.json    DatasetInfo: how it was made, counts, the hash of the split
manifest.csv    one SliceRecord per row
images.f32      slices in display orientation, flat little-endian float32 in [-1, 1]
labels.u8       their masks, flat uint8, if there are masks
quarantine.csv  files that could not be read, and the reasons; contains file names, do not share it
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from slicebook.data.layouts.sources import Unreadable
from slicebook.data.splits import SPLITS, Split
from slicebook.errors import DataError
from slicebook.io.atomic import write_csv, write_text
from slicebook.io.volume import Plane
from slicebook.records import Record

SCHEMA_VERSION = 1
IMAGES_NAME, LABELS_NAME = "images.f32", "labels.u8"


class SplitCounts(BaseModel):
    """The size of one split; `slices` includes blank ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patients: int
    volumes: int
    slices: int
    blank: int


class DatasetInfo(BaseModel):
    """The content of `dataset.json`, without names of patients, files or machines.

    Attributes:
        plane: None if the volumes were acquired in several planes.
        spacing: In-plane, in mm, if resampled.
        size: Rows and columns, if cropped or padded.
        fractions: Of patients in train, validation and test; None for the layout's own split.
        split_hash: SHA-256 over the voxels and the split of each volume; independent of spacing and size.
        label_values: All values in the masks.
        label_names: Names of label values, if the layout defines them.
        quarantined: Files left out because they could not be read.
        duplicates: Files left out because another file of the patient has the same voxels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    slicebook_version: str
    layout: str
    plane: Plane | None
    spacing: float | None
    size: tuple[int, int] | None
    percentiles: tuple[float, float]
    seed: int
    fractions: tuple[float, float, float] | None
    split_hash: str
    counts: dict[Split, SplitCounts]
    label_values: tuple[int, ...]
    quarantined: int
    duplicates: int
    label_names: dict[int, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """One row of `manifest.csv`.

    Attributes:
        index: Position in the manifest.
        patient: Serial pseudonym, `patient-0001`.
        volume: `patient-0001/volume-01`.
        slice: Number within the volume, in display order (inferior to superior when axial).
        position: Position in the volume, 0 for the first slice and 1 for the last.
        split: train, validation or test.
        rows, columns: Shape in pixels.
        offset: First element in `images.f32`.
        label_offset: First element in `labels.u8`, -1 without a mask.
        row_mm, column_mm: Distance between rows and between columns.
        low, high: Source intensities mapped to -1 and 1; the same for all slices of a volume.
        blank: Whether all pixels are equal; such slices are counted but not used in training.
        group: Class of the slice, a condition for generation; empty if unknown. It is the column `class`,
            which exists only if some slice has a class.
    """

    index: int
    patient: str
    volume: str
    slice: int
    position: float
    split: Split
    rows: int
    columns: int
    offset: int
    label_offset: int
    row_mm: float
    column_mm: float
    low: float
    high: float
    blank: bool
    group: str = ""


COLUMNS = [field.name for field in fields(SliceRecord) if field.name != "group"]

# How a cell is converted to the type of its field in `SliceRecord`; other values are refused.
_READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("index", "slice", "rows", "columns", "offset", "label_offset"), int),
    **dict.fromkeys(("position", "row_mm", "column_mm", "low", "high"), float),
    **dict.fromkeys(("patient", "volume", "group"), str),
    "split": lambda cell: SPLITS[SPLITS.index(cast("Split", cell))],
    "blank": {"0": False, "1": True}.__getitem__,
}

_SHARED = ("patient", "volume", "group", "row_mm", "column_mm", "low", "high")  # equal within a volume


def read_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json`.

    Raises:
        DataError: It is missing, malformed, or of another schema version.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: no dataset.json in it, so not a prepared folder; run: slicebook prepare DATA "
            f"-o {folder}"
        )
    try:
        info = DatasetInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: {where}: {first['msg']}; prepare the data again") from error
    if info.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {info.schema_version}, wanted {SCHEMA_VERSION}; prepare the data again"
        )
    return info


def read_manifest(folder: Path) -> tuple[SliceRecord, ...]:
    """Read `manifest.csv`.

    Raises:
        DataError: It is missing or malformed, or a row is inconsistent: a slice outside its file, a number
            that is not finite, a patient in two splits, a duplicate slice.
    """
    path = folder / "manifest.csv"
    records: list[SliceRecord] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header not in (COLUMNS, [*COLUMNS, "class"]):
                raise DataError(f"{path}: its first line is not {','.join(COLUMNS)}; prepare the data again")
            names = [*COLUMNS, "group"][: len(header)]
            # Equal values of a volume, such as its name and spacing, are stored once.
            known: dict[tuple[str, str], Any] = {}
            records.extend(_record_of(names, row, known) for row in rows)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; prepare the data again") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        line = f"line {len(records) + 2}"
        raise DataError(f"{path}: {line} cannot be read ({error}); prepare the data again") from error
    _check_records(path, records)
    return tuple(records)


def _record_of(names: Sequence[str], row: Sequence[str], known: dict[tuple[str, str], Any]) -> SliceRecord:
    """Return one row as a record.

    Args:
        names: Of the columns.
        row: The cells.
        known: Values of earlier rows, by column and cell; those of this row are added.

    Raises:
        ValueError: The number of cells or a value is wrong.
    """
    if len(row) != len(names):
        raise ValueError(f"{len(row)} cells, wanted {len(names)}")
    values = {}
    for name, cell in zip(names, row, strict=True):
        if name not in _SHARED:
            values[name] = _value_of(name, cell)
        elif (name, cell) not in known:
            values[name] = known[name, cell] = _value_of(name, cell)
        else:
            values[name] = known[name, cell]
    record = SliceRecord(**values)
    for field, is_right, wanted in (
        ("slice", record.slice >= 0, "0 or more"),
        ("position", 0 <= record.position <= 1, "0 to 1"),
        ("rows", record.rows >= 1, "1 or more"),
        ("columns", record.columns >= 1, "1 or more"),
        ("offset", record.offset >= 0, "0 or more"),
        ("label_offset", record.label_offset >= -1, "-1 or more"),
        ("row_mm", 0 < record.row_mm < math.inf, "above 0"),
        ("column_mm", 0 < record.column_mm < math.inf, "above 0"),
        ("low", math.isfinite(record.low), "a finite number"),
        ("high", record.low < record.high < math.inf, "above low and finite"),
        ("patient", bool(record.patient), "a name"),
        ("volume", bool(record.volume), "a name"),
    ):
        if not is_right:
            raise ValueError(f"{field} is {getattr(record, field)!r}, wanted {wanted}")
    return record


def _value_of(name: str, cell: str) -> Any:
    try:
        return _READ[name](cell)
    except (KeyError, ValueError):
        raise ValueError(f"{name} is {cell[:40]!r}") from None


def _check_records(path: Path, records: Sequence[SliceRecord]) -> None:
    """Refuse rows that contradict each other, or point outside `images.f32` or `labels.u8`."""
    images = sum(record.rows * record.columns for record in records)
    labels = sum(record.rows * record.columns for record in records if record.label_offset >= 0)
    split_of: dict[str, str] = {}
    patient_of: dict[str, str] = {}
    line_of: dict[tuple[str, object], int] = {}

    def faults(line: int, record: SliceRecord) -> Iterator[str]:
        size = record.rows * record.columns
        if record.index != line - 2:
            yield f"index is {record.index}, wanted {line - 2}"
        if record.offset + size > images:
            yield f"offset is {record.offset}, wanted at most {images - size}"
        if record.label_offset >= 0 and record.label_offset + size > labels:
            yield f"label_offset is {record.label_offset}, wanted at most {labels - size}"
        if split_of.setdefault(record.patient, record.split) != record.split:
            yield f"patient is in {record.split} and {split_of[record.patient]}, wanted one split"
        if patient_of.setdefault(record.volume, record.patient) != record.patient:
            yield "volume is that of two patients"
        keys: list[tuple[str, object]] = [("slice", (record.volume, record.slice)), ("offset", record.offset)]
        if record.label_offset >= 0:
            keys.append(("label_offset", record.label_offset))
        for key in keys:
            if line_of.setdefault(key, line) != line:
                yield f"{key[0]} is that of line {line_of[key]}"

    for line, record in enumerate(records, start=2):
        for fault in faults(line, record):
            raise DataError(f"{path}: line {line}: {fault}; prepare the data again")


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`."""
    write_text(folder / "dataset.json", info.model_dump_json(indent=2) + "\n")


def write_manifest(folder: Path, records: Iterable[SliceRecord]) -> None:
    """Write `manifest.csv`."""
    records = list(records)
    header = [*COLUMNS, "class"] if any(record.group for record in records) else COLUMNS
    rows = [
        {
            name: int(cell) if isinstance(cell, bool) else cell
            for name, cell in zip(header, astuple(record), strict=False)
        }
        for record in records
    ]
    write_csv(folder / "manifest.csv", rows, header)


def write_quarantine(folder: Path, files: Iterable[Unreadable]) -> None:
    """Write `quarantine.csv`."""
    rows = [{"file": str(unreadable.path), "reason": unreadable.reason} for unreadable in files]
    write_csv(folder / "quarantine.csv", rows, ["file", "reason"])


_Side = Annotated[int, Field(ge=1, le=16384)]  # pixels; a model file may not ask for any amount of memory
_Spacing = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SliceKind(Record):
    """Slices of one size that a prior was trained on; generated slices get their spacing and intensity."""

    rows: _Side
    columns: _Side
    row_mm: _Spacing
    """Distance between rows; the median over slices."""
    column_mm: _Spacing
    low: FiniteFloat
    """Source intensity that is mapped to -1; the median over slices."""
    high: FiniteFloat
    slices: int


def slice_kinds(records: Sequence[SliceRecord]) -> tuple[SliceKind, ...]:
    """Return the sizes of slices, most frequent first, with their median spacing and intensity."""
    sizes: dict[tuple[int, int], list[SliceRecord]] = defaultdict(list)
    for record in records:
        sizes[record.rows, record.columns].append(record)
    kinds = [
        SliceKind(
            rows=rows,
            columns=columns,
            row_mm=median(record.row_mm for record in members),
            column_mm=median(record.column_mm for record in members),
            low=median(record.low for record in members),
            high=median(record.high for record in members),
            slices=len(members),
        )
        for (rows, columns), members in sizes.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.slices))

"""The files of a prepared folder: what `slicebook prepare` writes, all that training and evaluation read.

dataset.json    DatasetInfo: how it was made, counts, the hash of the split
manifest.csv    one SliceRecord a line
images.f32      slices in display orientation, flat little-endian float32 in [-1, 1]
labels.u8       their masks, flat uint8, when there are masks
quarantine.csv  files that could not be read and why; it names raw files, so it stays with its owner
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from slicebook.atomic import write_csv, write_text
from slicebook.errors import DataError
from slicebook.layouts import Split, Unreadable
from slicebook.volumes import Plane

SCHEMA_VERSION = 1


class SplitCounts(BaseModel):
    """How much one split holds; blank slices are among `slices`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patients: int
    volumes: int
    slices: int
    blank: int


class DatasetInfo(BaseModel):
    """The content of `dataset.json`. Holds no name or identifier of a patient, file or machine.

    Attributes:
        plane: None where the volumes were acquired in several planes.
        spacing: In-plane, in mm, when resampled.
        size: Rows and columns, when cropped or padded.
        fractions: Patients in train, validation and test; None for the layout's own split.
        split_hash: SHA-256 over the voxels of each volume and its split: the same at every spacing and size.
        label_values: All that occur in the masks.
        quarantined: Files that could not be read, left out.
        duplicates: Files with the voxels of another of the same patient, left out.
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


@dataclass(frozen=True)
class SliceRecord:
    """One line of `manifest.csv`.

    Attributes:
        index: Position in the manifest.
        patient: Serial pseudonym, `patient-0001`.
        volume: `patient-0001/volume-01`.
        slice: Number within the volume, in display order (inferior to superior when axial).
        position: `slice` as a fraction of its volume, 0 for the first and 1 for the last.
        split: train, validation or test.
        rows, columns: Shape in pixels.
        offset: First element in `images.f32`.
        label_offset: First element in `labels.u8`, -1 without a mask.
        row_mm, column_mm: Distance between rows and between columns.
        low, high: Source intensities that became -1 and 1, the same for the whole volume.
        blank: One intensity throughout: counted, and left out of training.
        group: Class of the slice, a condition for generating; the column `class`, which stands only where
            some slice has one. Empty where it is not known.
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


def read_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json`.

    Raises:
        DataError: It is missing, malformed, or of another schema version.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: no dataset.json in it, so not a prepared folder; run: slicebook prepare DATA {folder}"
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
        DataError: It is missing or malformed.
    """
    path = folder / "manifest.csv"
    whole = {"index", "slice", "rows", "columns", "offset", "label_offset"}
    text = {"patient", "volume", "split", "group"}

    def value(name: str, cell: str) -> str | int | float | bool:
        if name in text:
            return cell
        return cell == "1" if name == "blank" else int(cell) if name in whole else float(cell)

    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header not in (COLUMNS, [*COLUMNS, "class"]):
                raise DataError(f"{path}: its first line is not {','.join(COLUMNS)}; prepare the data again")
            names = [*COLUMNS, "group"][: len(header)]
            # `strict`: a line cut short is an error, not a shorter record.
            return tuple(
                SliceRecord(**{n: value(n, cell) for n, cell in zip(names, row, strict=True)})  # type: ignore[arg-type]  # typed by `value`
                for row in rows
            )
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; prepare the data again") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: a line cannot be read ({error}); prepare the data again") from error


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

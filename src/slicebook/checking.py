"""Read a folder of volumes file by file, and report what is in it before anything is made of it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from jaxtyping import Float32, UInt8
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from slicebook.dicom import read_dicom_series
from slicebook.errors import DataError
from slicebook.layouts import EVERY_FILE, Found, Source, SourceOptions, Unreadable, find_sources
from slicebook.volumes import (
    Plane,
    Volume,
    orientation_of,
    plane_of,
    read_labels,
    read_nifti,
    slice_spacing,
    to_slices,
)

# Where NIfTI and DICOM headers tell who the patient was, or where and by whom the scan was made.
_NIFTI_TEXT = ("descrip", "aux_file", "intent_name", "db_name")
_DICOM_PRIVATE = (
    *("PatientName", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers", "OtherPatientIDs"),
    *("AccessionNumber", "InstitutionName", "ReferringPhysicianName", "OperatorsName", "PatientComments"),
)


@dataclass(frozen=True)
class Part:
    """The slices of one file, or of one DICOM series, in display orientation.

    Attributes:
        path: The file, or the first of the series.
        number: Of its first slice within the volume.
        plane: The one that the slices lie in, or nearest to.
        spacing: Between slices, rows and columns, in mm.
        digest: SHA-256 of the voxels; the same for a copy under another name, header or compression.
        blank: No two voxels differ.
    """

    path: Path
    number: int
    images: Float32[np.ndarray, "n rows columns"]
    labels: UInt8[np.ndarray, "n rows columns"] | None
    plane: Plane
    spacing: tuple[float, float, float]
    digest: bytes
    blank: bool

    @property
    def looks_like_a_mask(self) -> bool:
        """Whether it holds a few whole numbers only: a mask that was taken for an image."""
        if self.blank or self.labels is not None or len(np.unique(self.images[:, ::7, ::7])) > 8:
            return False
        values = np.unique(self.images)
        return len(values) <= 8 and bool((values == np.rint(values)).all())


@dataclass(frozen=True)
class Misfit:
    """A file that can be read and must not be used, and why."""

    path: Path
    reason: str


def read_parts(source: Source, plane: Plane | None) -> Iterator[Part | Unreadable | Misfit]:
    """Read a source, file by file. An image whose mask cannot be read is left out with it."""
    if source.series is not None:
        try:
            volume = read_dicom_series(source.series)
        except DataError as error:
            yield Unreadable(source.images[0], str(error))
        else:
            yield _part(source.images[0], 0, volume, None, plane)
        return
    for number, (path, mask_path) in enumerate(zip(source.images, source.labels, strict=True)):
        reading = path
        try:
            volume, mask = read_nifti(path), None
            if mask_path is not None:
                reading = mask_path
                mask = read_labels(mask_path)
        except DataError as error:
            yield Unreadable(reading, str(error))
            continue
        part = _part(path, number, volume, mask, plane)
        reason = _misfit(part, volume, mask_path, mask, source.is_stack)
        yield Misfit(path, reason) if reason else part


def count_files(found: Found) -> int:
    """Return how many files there are to read; a DICOM series counts as one."""
    readable = sum(
        1 if s.series is not None else len(s.images) + sum(mask is not None for mask in s.labels)
        for s in found.sources
    )
    return readable + len(found.unreadable)


def _part(path: Path, number: int, volume: Volume, mask: Volume | None, plane: Plane | None) -> Part:
    orientation = orientation_of(volume, plane)
    same_shape = mask is not None and mask.array.shape == volume.array.shape
    array = volume.array
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes(order="C")).digest()
    return Part(
        path=path,
        number=number,
        images=to_slices(array, orientation),
        labels=to_slices(mask.array, orientation).astype(np.uint8) if mask and same_shape else None,
        plane=plane_of(volume, orientation),
        spacing=slice_spacing(volume, orientation),
        digest=digest,
        blank=bool(array.min() == array.max()),
    )


def _misfit(
    part: Part, volume: Volume, mask_path: Path | None, mask: Volume | None, is_stack: bool
) -> str | None:
    """Return why a readable image cannot be used, or None."""
    if is_stack and len(part.images) > 1:
        return f"{part.path}: shape {volume.shape_on_disk}, wanted a 2D slice; move whole volumes elsewhere"
    if not is_stack and part.looks_like_a_mask:
        return (
            f"{part.path}: holds {len(np.unique(part.images))} whole numbers only, so a mask, not an image; "
            "pair it with its image by --mask, or narrow --patient-regex"
        )
    if mask is None:
        return None
    apart = max(np.abs(_corners(volume) - _corners(mask)).max(), 0.0)
    if volume.array.shape == mask.array.shape and apart < 0.1 * min(volume.spacing):
        return None
    return (
        f"{mask_path}: the mask does not lie on its image {part.path}: image shape {volume.array.shape}, "
        f"affine {_rounded(volume.affine)}; mask shape {mask.array.shape}, affine {_rounded(mask.affine)}; "
        "resample the mask to its image"
    )


def _corners(volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the first and last voxel and the ends of the three axes, in mm."""
    indices = np.vstack([np.diag(np.array(volume.array.shape) - 1), np.zeros(3)])
    return np.asarray(indices @ volume.affine[:3, :3].T + volume.affine[:3, 3])


def _rounded(affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[float]]:
    rounded: list[list[float]] = affine[:3].round(3).tolist()
    return rounded


@dataclass(frozen=True)
class CheckReport:
    """What lies in a folder of volumes. Names raw files: for their owner's screen.

    Attributes:
        patients: How many, or None where the patient of a file is not known.
        files: To read; a DICOM series counts as one.
        blank_slices: Of one intensity throughout; training leaves them out.
        shapes: Slices by rows × columns.
        spacings: Files by slice × row × column distance in mm.
        intensity: Smallest and largest.
        label_values: Voxels by label.
        duplicates: Groups of files with the same voxels.
        header_fields: Files (DICOM: series) by header field whose text may tell who the patient is.
        unreadable, misfits: Why, file by file.
        unmatched: Files that fit neither the layout nor the patient regex, and masks without an image.
    """

    folder: str
    layout: str
    patients: int | None
    splits: dict[str, int]
    volumes: int
    files: int
    slices: int
    blank_slices: int
    shapes: dict[str, int]
    spacings: dict[str, int]
    planes: dict[str, int]
    intensity: tuple[float, float] | None
    masks: int
    label_values: dict[int, int]
    duplicates: tuple[tuple[str, ...], ...]
    header_fields: dict[str, int]
    unreadable: tuple[str, ...]
    misfits: tuple[str, ...]
    unmatched: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What `slicebook prepare` would leave out or refuse, a line each."""
        copies = tuple(f"same voxels: {', '.join(group)}" for group in self.duplicates)
        return self.unreadable + self.misfits + copies

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps({**asdict(self), "problems": self.problems}, indent=2)

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as a table of what and how much."""
        low, high = self.intensity or (float("nan"), float("nan"))
        rows = [
            ("layout", self.layout),
            ("patients", "unknown: give --patient-regex" if self.patients is None else str(self.patients)),
            ("split of the layout", _listed(self.splits) or "none"),
            ("volumes", str(self.volumes)),
            ("files", str(self.files)),
            ("slices", f"{self.slices}, of which {self.blank_slices} blank"),
            ("planes", _listed(self.planes)),
            ("rows × columns", _listed(self.shapes)),
            ("slice × row × column, mm", _listed(self.spacings)),
            ("intensity", f"{low:g} to {high:g}"),
            ("masks", str(self.masks)),
            ("label values", _listed(self.label_values) or "none"),
            ("duplicates by content", str(len(self.duplicates))),
            ("unreadable", str(len(self.unreadable))),
            ("cannot be used", str(len(self.misfits))),
            ("unmatched", str(len(self.unmatched))),
            ("header text, maybe of the patient", _listed(self.header_fields) or "none"),
        ]
        return rows + [("problem", problem) for problem in self.problems]


def check(
    data: str | Path,
    source: SourceOptions = EVERY_FILE,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every volume below a folder and report on it; writes nothing.

    Works without `--patient-regex` too: patients are then not counted.

    Raises:
        DataError: No layout fits, no volume is found, or a patient is on two sides of the layout's own split.
    """
    data = Path(data)
    found = find_sources(data, source)
    tally = _Tally()
    for done, one in enumerate(found.sources):
        for part in read_parts(one, source.plane):
            tally.add(part)
        tally.headers.update(_private_fields(one))
        if progress is not None:
            progress(done + 1, len(found.sources))
    splits: Counter[str] = Counter(
        split for _, split in {(s.patient, s.split) for s in found.sources} if split
    )
    known = all(s.patient for s in found.sources)
    return CheckReport(
        folder=str(data),
        layout=found.layout,
        patients=len(found.patients) if known else None,
        splits=dict(splits),
        volumes=len(found.sources),
        files=count_files(found),
        slices=sum(tally.shapes.values()),
        blank_slices=tally.blank_slices,
        shapes=dict(tally.shapes.most_common()),
        spacings=dict(tally.spacings.most_common()),
        planes=dict(tally.planes.most_common()),
        intensity=(tally.low, tally.high) if tally.shapes else None,
        masks=tally.masks,
        label_values=dict(sorted(tally.label_values.items())),
        duplicates=tuple(tuple(paths) for paths in tally.copies.values() if len(paths) > 1),
        header_fields=dict(tally.headers.most_common()),
        unreadable=tuple(bad.reason for bad in (*found.unreadable, *tally.unreadable)),
        misfits=tuple(bad.reason for bad in tally.misfits),
        unmatched=tuple(str(path) for path in found.unmatched),
    )


class _Tally:
    """Counts over the files read so far."""

    def __init__(self) -> None:
        self.shapes: Counter[str] = Counter()
        self.spacings: Counter[str] = Counter()
        self.planes: Counter[str] = Counter()
        self.label_values: Counter[int] = Counter()
        self.headers: Counter[str] = Counter()
        self.copies: dict[bytes, list[str]] = defaultdict(list)
        self.unreadable: list[Unreadable] = []
        self.misfits: list[Misfit] = []
        self.blank_slices = self.masks = 0
        self.low, self.high = float("inf"), float("-inf")

    def add(self, part: Part | Unreadable | Misfit) -> None:
        """Count one file."""
        if isinstance(part, Unreadable):
            self.unreadable.append(part)
            return
        if isinstance(part, Misfit):
            self.misfits.append(part)
            return
        slices, rows, columns = part.images.shape
        self.shapes[f"{rows} × {columns}"] += slices
        self.spacings[" × ".join(f"{mm:.4g}" for mm in part.spacing)] += 1
        self.planes[part.plane] += 1
        self.blank_slices += int((part.images.min((1, 2)) == part.images.max((1, 2))).sum())
        self.low, self.high = (
            min(self.low, float(part.images.min())),
            max(self.high, float(part.images.max())),
        )
        if not part.blank:  # blank slices are alike, and no copies
            self.copies[part.digest].append(str(part.path))
        if part.labels is not None:
            self.masks += 1
            counts = np.bincount(part.labels.ravel())
            self.label_values.update({value: int(counts[value]) for value in np.flatnonzero(counts).tolist()})


def _private_fields(source: Source) -> set[str]:
    """Return the names of header fields with text that may tell who the patient is, never the text."""
    if source.series is not None:
        header = pydicom.dcmread(
            source.images[0], stop_before_pixels=True, specific_tags=list(_DICOM_PRIVATE)
        )
        return {name for name in _DICOM_PRIVATE if str(header.get(name) or "").strip()}
    fields: set[str] = set()
    for path in (*source.images, *source.labels):
        if path is not None:
            fields |= _nifti_text(path)
    return fields


def _nifti_text(path: Path) -> set[str]:
    try:
        header = nib.Nifti1Image.from_filename(path).header
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, zlib.error):
        return set()  # said among the unreadable
    names = {name for name in _NIFTI_TEXT if name in header and bytes(header[name]).strip(b"\0 ")}
    return names | ({"extensions"} if len(header.extensions) else set())


def _listed(counts: dict[str, int] | dict[int, int]) -> str:
    shown = [f"{value}: {count}" for value, count in list(counts.items())[:8]]
    return ", ".join(shown) + (f", and {len(counts) - 8} more" if len(counts) > 8 else "")

"""Records of the contents of a folder; every layout returns them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slicebook.data.splits import Split
from slicebook.errors import ConfigError
from slicebook.io.dicom_series import DicomSeries
from slicebook.io.volume import Plane


@dataclass(frozen=True)
class SourceOptions:
    """Options for listing a folder of volumes.

    Attributes:
        layout: Name of a layout; detected by default.
        plane: DICOM: use only series of this plane. NIfTI: slice volumes in this plane. Default: the plane of
            acquisition.
        patient_regex: Regular expression, searched in a file's path below the folder. Its group identifies
            the patient.
        mask: How a mask's path differs from its image's. OLD=NEW replaces text in the path, such as
            `_t2=_prostate`. Other text, such as `_seg`, is added before `.nii` or `.nii.gz`.
        series: Use only images that match this regular expression. It is searched in the description and UID
            of a DICOM series, the channel of an nnU-Net file, and the entities and suffix of a BIDS file.
        pixel_mm: Distance between rows and between columns of pictures (PNG, TIFF).
    """

    layout: str | None = None
    plane: Plane | None = None
    patient_regex: str | None = None
    mask: str | None = None
    series: str | None = None
    pixel_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.pixel_mm is not None and not all(0 < size < float("inf") for size in self.pixel_mm):
            raise ConfigError(f"--pixel-mm {self.pixel_mm}: wanted two distances in mm, above 0")

    def takes_series(self, *texts: str) -> bool:
        """Return whether `series` matches any of the texts, ignoring case; True if it is not given.

        Raises:
            ConfigError: It is not a regular expression.
        """
        if self.series is None:
            return True
        try:
            pattern = re.compile(self.series, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"--series {self.series!r}: {error}; example: 't2.*tra'") from error
        return any(pattern.search(text) for text in texts)


REGEX_RULE = "what --patient-regex finds in the path"
UNKNOWN_RULE = "unknown until --patient-regex is given"

EVERY_FILE = SourceOptions()
"""Detect the layout and use every series."""


@dataclass(frozen=True)
class Source:
    """The files of one volume. Contains raw names, which are never written to a prepared folder.

    Attributes:
        patient: Raw identifier of the patient; empty if unknown (`slicebook check` only).
        volume: Key of the volume; unique within the patient.
        images: One file; or the 2D files of a volume, in order; or the files of a DICOM series.
        labels: The mask of each image, or None; as long as `images`. Of a DICOM series: its SEG, if any.
        split: The split defined by the layout, or None.
        series: The DICOM series of `images`.
        kind: Kind of image within the layout: a channel, a suffix, a description.
        channel: Index along the fourth axis of a 4D file, if the layout says that it is a channel.
        segments: Of a DICOM SEG: the label of each segment number.
        pixel_mm: Of pictures: distance between rows and between columns, if known.
    """

    patient: str
    volume: str
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...] = ()
    split: Split | None = None
    series: DicomSeries | None = None
    kind: str = ""
    channel: int | None = None
    segments: Mapping[int, int] = field(default_factory=dict)
    pixel_mm: tuple[float, float] | None = None

    @property
    def is_stack(self) -> bool:
        """Whether each image is one 2D slice of the volume."""
        return self.series is None and len(self.images) > 1


@dataclass(frozen=True)
class Unreadable:
    """A file, or a DICOM series, that could not be read, and the reason.

    Attributes:
        path: The file, or the first one of the series.
        is_series: Whether `path` represents all files of a series.
    """

    path: Path
    reason: str
    is_series: bool = False


@dataclass(frozen=True)
class FolderScan:
    """The contents of a folder.

    Attributes:
        layout: Name of the layout.
        sources: Sorted by patient and volume.
        unmatched: Files that match neither the layout's names nor the patient regex; masks without an image.
        unreadable: Files whose header could not be read.
        left_out: Volumes that were not selected, each with the reason.
        notes: What was skipped, and warnings about the data; one line each.
        folder: The folder that was searched.
        patient_rule: What identifies the patient, in a few words.
        label_names: Names of label values, if the layout defines them.
    """

    layout: str
    sources: tuple[Source, ...]
    unmatched: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[tuple[Source, str], ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    patient_rule: str = ""
    label_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def given_splits(self) -> dict[str, Split]:
        """The splits of patients that the layout defines."""
        return {source.patient: source.split for source in self.sources if source.split is not None}

    @property
    def patients(self) -> tuple[str, ...]:
        """Raw identifiers, sorted and unique."""
        return tuple(sorted({source.patient for source in self.sources}))


def group_of(pattern: str, option: str) -> re.Pattern[str]:
    """Compile a regular expression that must have exactly one group.

    Raises:
        ConfigError: It has none or several, or is malformed.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{option} {pattern!r}: {error}; example: '(Case\\d+)'") from error
    if compiled.groups != 1:
        raise ConfigError(
            f"{option} {pattern!r} has {compiled.groups} groups, wanted exactly one, around the part that "
            "is meant; example: '(Case\\d+)_t2'"
        )
    return compiled


def patient_in(pattern: re.Pattern[str] | None, name: str) -> str:
    """Return the group of a pattern found in a path; empty if it does not match."""
    match = pattern.search(name) if pattern is not None else None
    return (match.group(1) or "") if match else ""


def regex_advice(names: list[str]) -> str:
    """Return advice on --patient-regex, with the first file names as examples."""
    examples = ", ".join(sorted(names)[:3])
    return (
        f"files are named like {examples}; give the part that names the patient as one group, "
        r"for example --patient-regex '(Case\d+)_t2' for Case00_t2.nii.gz"
    )

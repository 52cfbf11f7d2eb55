"""Records of what a folder holds, as every layout returns them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from slicebook.data.splits import Split
from slicebook.errors import ConfigError
from slicebook.io.dicom_series import DicomSeries
from slicebook.io.volume import Plane


@dataclass(frozen=True)
class SourceOptions:
    """How to read a folder of volumes.

    Attributes:
        layout: Name of a layout; recognised from the folder when not given.
        plane: DICOM: take the series of this plane. NIfTI: slice along it; that of acquisition if not given.
        patient_regex: Searched in a file's path below the folder; its one group is the patient.
        mask: Where the mask of an image is: `_t2=_prostate` replaces text in the image's path, `_seg` is
            added to its name before `.nii` or `.nii.gz`.
        series: Take only the series that this regular expression is found in: in the description or UID of a
            DICOM series, in the channel of nnU-Net, in the entities and suffix of BIDS.
    """

    layout: str | None = None
    plane: Plane | None = None
    patient_regex: str | None = None
    mask: str | None = None
    series: str | None = None

    def takes_series(self, *texts: str) -> bool:
        """Return whether `series` is found in any of the texts, in any case; all are when not given.

        Raises:
            ConfigError: It is no regular expression.
        """
        if self.series is None:
            return True
        try:
            pattern = re.compile(self.series, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"--series {self.series!r}: {error}; example: 't2.*tra'") from error
        return any(pattern.search(text) for text in texts)


EVERY_FILE = SourceOptions()
"""The layout is recognised, and every series is taken."""


@dataclass(frozen=True)
class Source:
    """The files of one volume. Holds raw names: nothing of it is written into a prepared folder.

    Attributes:
        patient: Raw identifier of the person; empty where it is not known (`slicebook check` only).
        volume: Tells the volumes of one patient apart.
        images: One file; or the 2D files of a volume, in order; or the instances of a DICOM series.
        labels: The mask of each image, or None; as long as `images` unless it is a DICOM series.
        split: The layout's own, or None.
        series: The DICOM series that `images` are the files of.
        kind: What the layout tells volumes of one patient apart by: a channel, a suffix, a description.
    """

    patient: str
    volume: str
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...] = ()
    split: Split | None = None
    series: DicomSeries | None = None
    kind: str = ""

    @property
    def is_stack(self) -> bool:
        """Whether each image is one 2D slice of the volume."""
        return self.series is None and len(self.images) > 1


@dataclass(frozen=True)
class Unreadable:
    """A file, or a whole DICOM series, that could not be read, and why.

    Attributes:
        path: The file, or the first one of the series.
        is_series: Whether all files of a series are meant.
    """

    path: Path
    reason: str
    is_series: bool = False


@dataclass(frozen=True)
class FolderScan:
    """What lies in a folder.

    Attributes:
        layout: Name of the layout.
        sources: Sorted by patient and volume.
        unmatched: Files that fit neither the layout's names nor the patient regex; masks without an image.
        unreadable: Files whose header could not be read.
        left_out: Volumes that were not asked for, each with the reason.
        notes: What was passed over, and what to know before the data are used: a line each.
        folder: The folder that was searched.
    """

    layout: str
    sources: tuple[Source, ...]
    unmatched: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[tuple[Source, str], ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def given_splits(self) -> dict[str, Split]:
        """The splits that the layout itself gives to patients."""
        return {source.patient: source.split for source in self.sources if source.split is not None}

    @property
    def patients(self) -> tuple[str, ...]:
        """Raw identifiers, sorted, each once."""
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
    """Return what the one group of a pattern holds in a path; empty where it does not fit."""
    match = pattern.search(name) if pattern is not None else None
    return (match.group(1) or "") if match else ""


def regex_advice(names: list[str]) -> str:
    """Return how to name the patient, with the first of these file names as examples."""
    examples = ", ".join(sorted(names)[:3])
    return (
        f"files are named like {examples}; give the part that names the patient as one group, "
        r"for example --patient-regex '(Case\d+)_t2' for Case00_t2.nii.gz"
    )

"""Read a folder of volumes file by file and report what it contains. Writes nothing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from slicebook.data.findings import grouped, limited
from slicebook.data.layouts.protocol_words import shown_words
from slicebook.data.layouts.registry import find_sources, patient_warnings
from slicebook.data.layouts.sources import EVERY_FILE, FolderScan, Source, SourceOptions, Unreadable
from slicebook.data.reader import Misfit, Part, count_files, read_parts
from slicebook.data.worker_pool import map_in_order
from slicebook.io.discovery import first_names
from slicebook.io.nifti import text_fields
from slicebook.io.volume import Plane
from slicebook.progress import Progress


@dataclass(frozen=True)
class CheckReport:
    """What a folder of volumes contains. It contains file names; do not share it.

    Attributes:
        patients: Number of patients, or None if the patient of a file is unknown.
        files: Number of files, including masks.
        blank_slices: Slices of constant intensity; not used in training.
        shapes: Number of slices per size (rows × columns).
        spacings: Number of files per distance between slices × rows × columns, in mm.
        intensity: Minimum and maximum over all voxels.
        label_values: Number of voxels per label.
        duplicates: Groups of files with the same voxels.
        header_fields: Number of files per header field whose text may identify the patient.
        unreadable, misfits: The reason for each file.
        unmatched: Files that match neither the layout nor the patient regex, and masks without an image.
        series: Number of volumes per kind of series; the kinds that --series excludes are marked.
        label_names: Names of label values, if the layout defines them.
        notes: What the folder was taken for, what was skipped, and what may be wrong with the patients.
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
    series: dict[str, int] = field(default_factory=dict)
    label_names: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What `slicebook prepare` would leave out or refuse, one line each."""
        copies = tuple(f"same voxels: {', '.join(group)}" for group in self.duplicates)
        return self.unreadable + self.misfits + copies

    def to_json(self) -> str:
        """Return the report as a JSON object."""
        return json.dumps({**asdict(self), "problems": self.problems}, indent=2)

    def _labels(self) -> str:
        """Return label values with their names, and the number of voxels of each."""
        named = {
            f"{value} ({self.label_names[value]})" if value in self.label_names else f"{value}": count
            for value, count in self.label_values.items()
        }
        return _listed(named)

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as rows of name and value."""
        low, high = self.intensity or (float("nan"), float("nan"))
        rows = [
            ("taken for", (self.notes[0] if self.notes else self.layout).removeprefix("taken for ")),
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
            ("label values", self._labels() or "none"),
            ("duplicate files", str(len(self.duplicates))),
            ("unreadable", str(len(self.unreadable))),
            ("cannot be used", str(len(self.misfits))),
            ("unmatched", f"{len(self.unmatched)}: {first_names(self.unmatched)}" if self.unmatched else "0"),
            ("header text that may identify the patient", _listed(self.header_fields) or "none"),
        ]
        copies = [f"{group[0]}: has the same voxels as {first_names(group[1:])}" for group in self.duplicates]
        rows += limited(("series", f"{name}: {count} volumes") for name, count in self.series.items())
        rows += limited(("note", note) for note in self.notes[1:])
        return rows + limited(
            ("problem", line) for group in (self.unreadable, self.misfits, copies) for line in grouped(group)
        )


def check(
    data: str | Path,
    source: SourceOptions = EVERY_FILE,
    *,
    show_descriptions: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every volume below a folder and report on it; writes nothing.

    Without `--patient-regex`, the patients may be unknown. They are then not counted.

    Args:
        data: Folder of volumes.
        source: Which files belong to which patient.
        show_descriptions: Show DICOM series descriptions whole. They may name a patient; by default, words
            that are not of a scan protocol are hidden.
        workers: Number of processes that read volumes; 0 reads in this process. The report is the same.
        progress: Called with the number of volumes done and in total, before the work and after each volume.

    Raises:
        DataError: No layout fits, no volume is found, or a patient is in two splits of the layout.
    """
    data = Path(data)
    scan = find_sources(data, source)
    tally = _Tally()
    tallies = map_in_order(partial(_tally_of, plane=source.plane), scan.sources, workers)
    if progress is not None:
        progress(0, len(scan.sources))
    for done, of_volume in enumerate(tallies, start=1):
        tally.merge(of_volume)
        if progress is not None:
            progress(done, len(scan.sources))
    splits: Counter[str] = Counter(
        split for _, split in {(s.patient, s.split) for s in scan.sources} if split
    )
    known = all(s.patient for s in scan.sources)
    return CheckReport(
        folder=str(data),
        layout=scan.layout,
        patients=len(scan.patients) if known else None,
        splits=dict(splits),
        volumes=len(scan.sources),
        files=count_files(scan),
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
        unreadable=tuple(bad.reason for bad in (*scan.unreadable, *tally.unreadable)),
        misfits=tuple(bad.reason for bad in tally.misfits),
        unmatched=tuple(str(path) for path in scan.unmatched),
        series=_series_kinds(scan, show_descriptions),
        label_names=dict(scan.label_names),
        notes=(*scan.notes, *patient_warnings(scan), *tally.notes()),
    )


def _series_kinds(scan: FolderScan, show_descriptions: bool) -> dict[str, int]:
    """Count volumes by kind, plane and the reason for leaving them out; empty if the layout has no kinds."""
    counts: Counter[str] = Counter()
    for source, reason in (*((source, "") for source in scan.sources), *scan.left_out):
        if source.kind or source.series is not None:
            plane = source.series.plane if source.series is not None else ""
            kind = source.kind
            if source.series is not None and not show_descriptions:
                kind = shown_words(kind, source.series.patient_id)
            modality = source.series.modality if source.series is not None else ""
            counts[
                ", ".join(filter(None, (kind or "no description", modality, plane)))
                + (f" (left out: {reason})" if reason else "")
            ] += 1
    return dict(sorted(counts.items()))


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
        self.disagreeing: list[str] = []
        self.low, self.high = float("inf"), float("-inf")

    def add(self, part: Part | Unreadable | Misfit) -> None:
        """Add one file to the counts."""
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
        if not part.blank:  # blank slices are equal without being copies
            self.copies[part.digest].append(str(part.path))
        if part.forms_disagree:
            self.disagreeing.append(str(part.path))
        if part.labels is not None:
            self.masks += 1
            counts = np.bincount(part.labels.ravel())
            self.label_values.update({value: int(counts[value]) for value in np.flatnonzero(counts).tolist()})

    def merge(self, other: _Tally) -> None:
        """Add the counts over the files that were read next."""
        for name in ("shapes", "spacings", "planes", "label_values", "headers"):
            getattr(self, name).update(getattr(other, name))
        for digest, paths in other.copies.items():
            self.copies[digest] += paths
        for name in ("unreadable", "misfits", "disagreeing"):
            getattr(self, name).extend(getattr(other, name))
        self.blank_slices += other.blank_slices
        self.masks += other.masks
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def notes(self) -> list[str]:
        """Return remarks that are not errors."""
        if not self.disagreeing:
            return []
        return [
            f"{len(self.disagreeing)} files whose sform and qform disagree; the sform is used: "
            f"{first_names(self.disagreeing)}"
        ]


def _tally_of(source: Source, plane: Plane | None) -> _Tally:
    """Return the counts over the files of one volume."""
    tally = _Tally()
    for part in read_parts(source, plane):
        tally.add(part)
    tally.headers.update(_private_text(source))
    return tally


def _private_text(source: Source) -> Counter[str]:
    """Count files per header field whose text may identify the patient; never returns the text."""
    if source.series is not None:
        return Counter(source.series.private_text)
    paths = [path for path in (*source.images, *source.labels) if path is not None]
    return Counter(field for path in paths for field in text_fields(path))


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{value}: {count}" for value, count in list(counts.items())[:8]]
    return ", ".join(shown) + (f", and {len(counts) - 8} more" if len(counts) > 8 else "")

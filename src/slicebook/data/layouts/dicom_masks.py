"""DICOM SEG files as the masks of their series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slicebook.data.layouts.sources import Unreadable
from slicebook.errors import DataError
from slicebook.io.dicom_series import DicomSeries
from slicebook.io.discovery import first_names
from slicebook.io.formats.dicom_seg import (
    SegmentationHeader,
    can_read_segmentations,
    read_segmentation_header,
)


@dataclass(frozen=True)
class SeriesMasks:
    """The masks of DICOM series.

    Attributes:
        by_series: For a series: its SEG file, and the label of each segment number.
        label_names: Names of labels.
        unmatched: SEG files without a series, and all of a series with several.
        unreadable: SEG files that could not be read.
        notes: What was left out or renumbered.
    """

    by_series: Mapping[str, tuple[Path, Mapping[int, int]]] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    unmatched: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()


def masks_of_series(folder: Path, paths: Sequence[Path], series: Sequence[DicomSeries]) -> SeriesMasks:
    """Pair SEG files with the series that they refer to.

    A label is the segment's number. If a number means different things in different files, labels are
    numbered by the sorted names of the segments.

    Args:
        folder: Of the data set.
        paths: SEG files.
        series: Image series; only one stack of a series can have a mask.
    """
    if not paths:
        return SeriesMasks()
    if not can_read_segmentations():
        remedy = "to read them as masks: pip install 'slicebook[dicom]'"
        return SeriesMasks(notes=(f"{len(paths)} DICOM SEG files were passed over; {remedy}",))
    headers: list[SegmentationHeader] = []
    unreadable = []
    for path in paths:
        try:
            header = read_segmentation_header(path)
        except DataError as error:
            unreadable.append(Unreadable(path, str(error)))
            continue
        if header is not None:
            headers.append(header)
    fitting: dict[str, list[SegmentationHeader]] = defaultdict(list)
    stacks = [item.series_uid for item in series]
    unmatched = []
    for header in headers:
        known = [uid for uid in header.series_uids if stacks.count(uid) == 1]
        if len(known) == 1:
            fitting[known[0]].append(header)
        else:
            unmatched.append(header.path)
    several = [header.path for group in fitting.values() if len(group) > 1 for header in group]
    paired = {uid: group[0] for uid, group in fitting.items() if len(group) == 1}
    names, is_renumbered = _label_names(list(paired.values()))
    numbers = {name: value for value, name in names.items()}
    notes = []
    if several:
        shown = first_names([path.relative_to(folder).as_posix() for path in several])
        notes.append(
            f"{len(several)} SEG files are several of one series and are left out: {shown}; keep one of each"
        )
    if is_renumbered:
        listed = ", ".join(f"{value} = {name}" for value, name in names.items())
        notes.append(f"segment numbers differ between SEG files; labels are numbered by name: {listed}")
    by_series = {
        uid: (
            header.path,
            {number: numbers[name] if is_renumbered else number for number, name in header.segments.items()},
        )
        for uid, header in paired.items()
    }
    return SeriesMasks(by_series, names, (*unmatched, *several), tuple(unreadable), tuple(notes))


def _label_names(headers: Sequence[SegmentationHeader]) -> tuple[dict[int, str], bool]:
    """Return names by label, and whether labels are not the segment numbers."""
    named: dict[int, set[str]] = defaultdict(set)
    for header in headers:
        for number, name in header.segments.items():
            named[number].add(name)
    if all(len(names) == 1 for names in named.values()):
        return {number: next(iter(names)) for number, names in sorted(named.items())}, False
    every = sorted({name for names in named.values() for name in names})
    return dict(enumerate(every, start=1)), True

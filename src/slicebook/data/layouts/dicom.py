"""A folder of DICOM files. The patient is the PatientID, or what --patient-regex matches in the path.

A DICOM SEG file is the mask of the series that it refers to.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np

from slicebook.data.layouts.dicom_masks import SeriesMasks, masks_of_series
from slicebook.data.layouts.sources import (
    REGEX_RULE,
    FolderScan,
    Source,
    SourceOptions,
    Unreadable,
    group_of,
    patient_in,
    regex_advice,
)
from slicebook.errors import ConfigError, DataError
from slicebook.io.dicom_file import MosaicError, is_dicom, read_fields
from slicebook.io.dicom_series import DicomSeries, find_dicom_series
from slicebook.io.discovery import DiscoveredFiles, first_names
from slicebook.io.limits import LIMITS
from slicebook.io.volume import PLANES


def is_dicom_tree(discovered: DiscoveredFiles) -> bool:
    """Return whether a file is DICOM, by its name or its content."""
    return any(is_dicom(path) for path in discovered.others)


def find_dicom(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List the series that `options` select; `find_dicom_series` leaves out localizers.

    Raises:
        ConfigError: An option does not apply or is malformed.
        DataError: No series is left, or the patient regex matches no file.
    """
    if options.mask:
        raise ConfigError("--mask does not apply to DICOM, whose masks are DICOM SEG files")
    folder = discovered.folder
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    unreadable: list[Unreadable] = []
    unmatched: list[Path] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    segmentations: list[Path] = []
    listed = set(discovered.files)

    def damaged(path: Path, error: DataError) -> None:
        if path not in listed:  # hidden, and counted there
            return
        if _may_be_selected(path, options):
            is_series = isinstance(error, MosaicError)
            unreadable.append(Unreadable(path, str(error), is_series))
        else:
            skipped["unreadable and not asked for"].append(path.relative_to(folder).as_posix())

    def passed_over(path: Path, reason: str) -> None:
        if reason == "segmentation" and path in listed:
            segmentations.append(path)
        elif reason == "no patient" and pattern is not None:
            unmatched.append(path)
        elif path in listed:
            skipped[reason].append(path.relative_to(folder).as_posix())

    # Apply the regex per file before slices are stacked: anonymised UIDs of two patients may coincide.
    every = find_dicom_series(
        folder,
        unreadable=damaged,
        skipped=passed_over,
        patient_of=(lambda path: patient_in(pattern, path.relative_to(folder).as_posix()) or None)
        if pattern is not None
        else None,
    )
    sources, left_out = _select(every, options)
    if every and not sources:
        raise DataError(f"{folder}: {_no_series_message([source for source, _ in left_out], options)}")
    if not sources and unmatched:
        names = [path.relative_to(folder).as_posix() for path in unmatched]
        raise DataError(
            f"{folder}: --patient-regex {options.patient_regex!r} matches no file; {regex_advice(names)}"
        )
    masks = masks_of_series(folder, segmentations, every)
    sources = [_with_mask(source, masks) for source in sources]
    notes = [*_lone_slices(sources, folder), *_passed_over(skipped), *masks.notes]
    return FolderScan(
        "dicom",
        tuple(sources),
        (*unmatched, *masks.unmatched),
        (*unreadable, *masks.unreadable),
        tuple(left_out),
        tuple(notes),
        patient_rule=REGEX_RULE if pattern else "the attribute PatientID",
        label_names=masks.label_names,
    )


def _select(
    every: list[DicomSeries], options: SourceOptions
) -> tuple[list[Source], list[tuple[Source, str]]]:
    """Return the series that `options` select, and the others with the reason."""
    sources, left_out = [], []
    for series in every:
        key = f"{series.series_uid} {series.acquisition} {' '.join(series.parts)}"
        secret = series.patient_id and series.patient_id in series.description
        kind = "" if secret else series.description
        source = Source(series.patient_id, key, series.files, series=series, kind=kind)
        reason = _exclusion_reason(series, options)
        if reason is None:
            sources.append(source)
        else:
            left_out.append((source, reason))
    return sources, left_out


def _with_mask(source: Source, masks: SeriesMasks) -> Source:
    """Return a source with the SEG of its series, if there is one."""
    if source.series is None or source.series.series_uid not in masks.by_series:
        return source
    path, segments = masks.by_series[source.series.series_uid]
    return replace(source, labels=(path,), segments=segments)


def _passed_over(skipped: dict[str, list[str]]) -> list[str]:
    """Return a note on the files that were passed over, by reason, with the first of each."""
    if not skipped:
        return []
    counts = ", ".join(
        f"{len(names)} {reason} (first: {names[0]})" for reason, names in sorted(skipped.items())
    )
    return [f"{sum(map(len, skipped.values()))} DICOM files were passed over: {counts}"]


def _lone_slices(sources: list[Source], folder: Path) -> list[str]:
    """Return a note if similar series of one slice each, in one folder, may be a single volume."""
    alike: dict[Hashable, list[Path]] = defaultdict(list)
    for source in sources:
        if source.series is not None and source.series.frames == 1:
            series, path = source.series, source.images[0]
            alike[path.parent, source.patient, series.description, series.plane, series.shape].append(path)
    groups = [paths for paths in alike.values() if len(paths) > 1]
    if not groups:
        return []
    names = [path.relative_to(folder).as_posix() for paths in groups for path in paths]
    return [
        f"{len(names)} series of one slice each are beside others like them: {first_names(names)}; if they "
        "are one volume, export it again as one series"
    ]


def _exclusion_reason(series: DicomSeries, options: SourceOptions) -> str | None:
    """Return why a series is left out, or None."""
    if options.plane not in (None, series.plane):
        return "not of --plane"
    return None if options.takes_series(series.description, series.series_uid) else "not of --series"


def _no_series_message(left_out: list[Source], options: SourceOptions) -> str:
    """Return a message that no series is left. It lists the planes, but no text of a header."""
    series = [source.series for source in left_out if source.series is not None]
    of_plane = [item for item in series if options.plane in (None, item.plane)]
    if not of_plane:
        return f"no {options.plane} series, found {planes_of(series)}; choose with --plane"
    return (
        f"--series {options.series!r} is found in no description or UID of {len(of_plane)} series; "
        "slicebook check lists them"
    )


def _may_be_selected(path: Path, options: SourceOptions) -> bool:
    """Return False if the header of an unreadable file has another plane or series than those selected."""
    if options.plane is None and options.series is None:
        return True
    tags = ["ImageOrientationPatient", "SeriesDescription", "SeriesInstanceUID"]
    try:
        header = read_fields(path, LIMITS, tags)
        texts = [str(header.get(tag) or "") for tag in tags[1:]]
        orientation = np.array([float(x) for x in header.get(tags[0]) or ()])
    except (DataError, ValueError, TypeError):  # a damaged file is counted
        return True
    if options.plane is not None and orientation.shape == (6,):
        normal = np.abs(np.cross(orientation[:3], orientation[3:]))
        if PLANES[int(np.argmax(normal))] != options.plane:
            return False
    return not any(texts) or options.takes_series(*texts)


def planes_of(series: list[DicomSeries]) -> str:
    """Return the number of series per plane as text."""
    counts = Counter(item.plane for item in series)
    return ", ".join(f"{count} {plane}" for plane, count in counts.most_common())

"""Folders of PNG and TIFF files, and folders of masks beside them.

images/P01_003.png     slice 3 of a volume of patient P01; a TIFF of several pages is a volume
masks/P01_003.png      its mask; P01_003_mask.png also

A mask is paired by its path, in which the words for images and masks are left out. Where there is a folder of
images, pictures outside of such folders are not images. --patient-regex gives the patients, --pixel-mm the
size of a pixel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from slicebook.data.layouts.sources import (
    REGEX_RULE,
    UNKNOWN_RULE,
    FolderScan,
    Source,
    SourceOptions,
    Unreadable,
    group_of,
    patient_in,
    regex_advice,
)
from slicebook.errors import ConfigError, DataError
from slicebook.io.discovery import DiscoveredFiles, first_names
from slicebook.io.formats.pictures import page_count

_IMAGE_FOLDER = re.compile(r"(?:images?|imgs?|scans?)(?:[_.-]|$)(.*)", re.IGNORECASE)
_MASK_FOLDER = re.compile(
    r"(?:masks?|labels?|segs?|segmentations?|annotations?|gt|ground_?truth)(?:[_.-]|$)(.*)", re.IGNORECASE
)
_MASK_STEM = re.compile(r"(.+)[_.-](?:masks?|segs?|segmentations?|labels?|gt)", re.IGNORECASE)
_NUMBER = re.compile(r"(.*?)(\d+)$")


def is_pictures(discovered: DiscoveredFiles) -> bool:
    """Return whether any file is a picture by its name, and none a volume."""
    return bool(discovered.pictures) and len(discovered.pictures) == len(discovered.volumes)


def find_pictures(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List volumes: pictures of one folder and patient whose names differ in the last number alone."""
    if options.mask or options.series:
        raise ConfigError("--mask and --series do not apply to pictures; masks lie in a folder named masks")
    folder = discovered.folder
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    images: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    masks: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    unmatched: list[Path] = []
    has_folder = any(_is_in_image_folder(path.relative_to(folder)) for path in discovered.pictures)
    for path in discovered.pictures:
        key, is_mask = _key_of(path.relative_to(folder))
        if has_folder and not is_mask and not _is_in_image_folder(path.relative_to(folder)):
            unmatched.append(path)
        else:
            (masks if is_mask else images)[key].append(path)
    unmatched += [path for key, paths in masks.items() if key not in images for path in paths]
    notes = []
    doubtful = [key for key, paths in images.items() if len(paths) > 1 or len(masks.get(key, ())) > 1]
    if doubtful:
        names = [images[key][0].relative_to(folder).as_posix() for key in doubtful]
        unmatched += [path for key in doubtful for path in (*images.pop(key), *masks.pop(key, []))]
        notes.append(
            f"{len(doubtful)} pictures have several images or masks, and are left out: {first_names(names)}"
        )
    chosen = [(paths[0], next(iter(masks.get(key, [])), None)) for key, paths in images.items()]
    groups, unreadable = _group(folder, chosen, pattern, unmatched)
    sources = tuple(
        Source(patient, volume, *_columns(members), pixel_mm=options.pixel_mm)
        for (patient, volume), members in groups.items()
    )
    if pattern is not None and not sources and chosen:
        names = [path.relative_to(folder).as_posix() for path, _ in chosen]
        raise DataError(
            f"{folder}: --patient-regex {options.patient_regex!r} matches no file; {regex_advice(names)}"
        )
    if options.pixel_mm is None:
        notes.append("the pixel size is unknown; give --pixel-mm ROW COLUMN, the distances in mm")
    return FolderScan(
        "pictures",
        sources,
        tuple(sorted(unmatched)),
        unreadable,
        notes=tuple(notes),
        patient_rule=REGEX_RULE if pattern else UNKNOWN_RULE,
    )


def _group(
    folder: Path,
    chosen: list[tuple[Path, Path | None]],
    pattern: re.Pattern[str] | None,
    unmatched: list[Path],
) -> tuple[dict[tuple[str, str], list[tuple[int, Path, Path | None]]], tuple[Unreadable, ...]]:
    """Return pictures with their numbers and masks by patient and volume; adds to `unmatched`."""
    groups: dict[tuple[str, str], list[tuple[int, Path, Path | None]]] = defaultdict(list)
    unreadable = []
    for path, mask in chosen:
        name = path.relative_to(folder)
        patient = patient_in(pattern, name.as_posix()) if pattern else ""
        if pattern is not None and not patient:
            unmatched.append(path)
            continue
        try:
            is_volume = path.suffix.lower() != ".png" and page_count(path) > 1
        except DataError as error:
            unreadable.append(Unreadable(path, str(error)))
            continue
        match = None if is_volume else _NUMBER.fullmatch(path.stem)
        stem, number = (match[1], int(match[2])) if match else (path.name, 0)
        groups[patient, (name.parent / stem).as_posix()].append((number, path, mask))
    return groups, tuple(unreadable)


def _columns(
    members: list[tuple[int, Path, Path | None]],
) -> tuple[tuple[Path, ...], tuple[Path | None, ...]]:
    ordered = sorted(members, key=lambda member: (member[0], member[1]))
    return tuple(path for _, path, _ in ordered), tuple(mask for _, _, mask in ordered)


def _is_in_image_folder(name: Path) -> bool:
    return any(_IMAGE_FOLDER.fullmatch(part) for part in name.parts[:-1])


def _key_of(name: Path) -> tuple[tuple[str, ...], bool]:
    """Return a path without the words for images and masks, and whether the file is a mask."""
    parts: list[str] = []
    is_mask = False
    for part in name.parts[:-1]:
        image, mask = _IMAGE_FOLDER.fullmatch(part), _MASK_FOLDER.fullmatch(part)
        is_mask = is_mask or mask is not None
        rest = image or mask
        parts += [rest[1].lower()] if rest and rest[1] else [] if rest else [part]
    stem = name.stem
    match = _MASK_STEM.fullmatch(stem)
    if match is not None:
        is_mask, stem = True, match[1]
    return (*parts, stem), is_mask

"""Any folder of NIfTI, or of .mha, .mhd and .nrrd. --patient-regex gives the patients, --mask the masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from slicebook.data.layouts.sources import (
    REGEX_RULE,
    UNKNOWN_RULE,
    FolderScan,
    Source,
    SourceOptions,
    group_of,
    patient_in,
    regex_advice,
)
from slicebook.errors import ConfigError, DataError
from slicebook.io.discovery import DiscoveredFiles, first_names

_ENDING = re.compile(r"\.(nii(\.gz)?|mha|mhd|nrrd)$", re.IGNORECASE)


def is_nifti(discovered: DiscoveredFiles) -> bool:
    """Return whether any file is NIfTI by its name."""
    return bool(discovered.nifti)


def is_itk(discovered: DiscoveredFiles) -> bool:
    """Return whether any file is .mha, .mhd or .nrrd by its name."""
    return bool(discovered.itk)


def find_nifti(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List the NIfTI files of a folder and its subfolders, with patients and masks."""
    return _find("nifti", discovered.folder, discovered.nifti, options)


def find_itk(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List the .mha, .mhd and .nrrd files of a folder and its subfolders, with patients and masks."""
    return _find("itk", discovered.folder, discovered.itk, options)


def _find(layout: str, folder: Path, paths: Sequence[Path], options: SourceOptions) -> FolderScan:
    if options.series:
        raise ConfigError(f"--series does not apply to {layout}; narrow --patient-regex to the files wanted")
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    by_stem = {_without_ending(name): name for name in names}
    mask_of = {}
    for name in names:
        wanted = _mask_name(name, options.mask)
        mask = wanted if wanted in names else by_stem.get(_without_ending(wanted), name)
        if wanted != name and mask != name:
            mask_of[name] = mask
    orphans = _orphan_masks(names, mask_of, options.mask)
    images = set(names).difference(mask_of.values(), orphans)
    candidates = [name for name in names if name in images]
    notes = _orphan_notes(orphans, candidates, folder, options.mask)
    if options.patient_regex is None:
        every = tuple(_nifti_source("", name, names, mask_of) for name in candidates)
        left_out = tuple(names[name] for name in orphans)
        return FolderScan(layout, every, left_out, notes=notes, patient_rule=UNKNOWN_RULE)
    pattern = group_of(options.patient_regex, "--patient-regex")
    sources, unmatched = [], [names[name] for name in orphans]
    for name in candidates:
        if patient := patient_in(pattern, name):
            sources.append(_nifti_source(patient, name, names, mask_of))
        else:
            unmatched.append(names[name])
    if not sources and names:
        raise DataError(
            f"{folder}: --patient-regex {options.patient_regex!r} matches no file; "
            f"{regex_advice(list(names))}"
        )
    if options.mask and not mask_of:
        raise DataError(
            f"{folder}: --mask {options.mask!r} finds no mask; for {sources[0].images[0].name} it looked for "
            f"{_mask_name(sources[0].volume, options.mask)}"
        )
    return FolderScan(layout, tuple(sources), tuple(sorted(unmatched)), notes=notes, patient_rule=REGEX_RULE)


def _nifti_source(patient: str, name: str, names: dict[str, Path], mask_of: dict[str, str]) -> Source:
    mask = mask_of.get(name)
    return Source(patient, name, (names[name],), (names[mask] if mask else None,))


def _orphan_masks(names: Mapping[str, Path], mask_of: Mapping[str, str], rule: str | None) -> list[str]:
    """Return the files that are masks by the rule but belong to no image.

    Such a file has the text of the rule in its name, or only in its folder, if the folder holds masks of
    other images and no image.
    """
    if not rule:
        return []
    old, _, new = rule.partition("=") if "=" in rule else ("", "", rule)
    if not new:
        return []
    paired = set(mask_of.values())
    mask_folders = {PurePosixPath(name).parent for name in paired}
    mask_folders -= {PurePosixPath(name).parent for name in mask_of}

    def is_mask(name: str) -> bool:
        stem, folder = _without_ending(PurePosixPath(name).name), PurePosixPath(name).parent
        if not old:
            return stem.endswith(new)
        if old in stem.replace(new, ""):  # the rule makes another name of it, as of an image
            return False
        return new in stem or (new in _without_ending(name) and folder in mask_folders)

    return [name for name in names if name not in mask_of and name not in paired and is_mask(name)]


def _orphan_notes(
    orphans: Sequence[str], candidates: Sequence[str], folder: Path, rule: str | None
) -> tuple[str, ...]:
    """Return a line on masks without an image.

    Raises:
        DataError: There is no image at all.
    """
    if not orphans:
        return ()
    what = f"{len(orphans)} masks by --mask {rule!r} have no image: {first_names(orphans)}"
    if not candidates:
        raise DataError(f"{folder}: {what}; give the folder that holds the images too, or leave --mask out")
    return (f"{what}; they are left out",)


def _without_ending(name: str) -> str:
    return re.sub(_ENDING, "", name)


def _mask_name(image: str, rule: str | None) -> str:
    """Return the path of an image's mask below the folder, or the image's path if the rule does not apply."""
    if not rule:
        return image
    if "=" in rule:
        old, _, new = rule.partition("=")
        if not old:
            raise ConfigError(f"--mask {rule!r}: nothing before '='; example: _t2=_prostate")
        return image.replace(old, new)
    return re.sub(_ENDING, lambda ending: rule + ending[0], image)

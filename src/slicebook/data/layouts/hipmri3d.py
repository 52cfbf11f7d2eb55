"""The volumes of the HipMRI study (https://doi.org/10.25919/45t8-p065), one file per week.

semantic_MRs_anon/Case_004_Week0_LFOV.nii.gz
semantic_labels_anon/Case_004_Week0_SEMANTIC_LFOV.nii.gz     its mask; or …_SEMANTIC.nii.gz

The case is the patient: all weeks of a case are in one split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from slicebook.data.layouts.sources import (
    REGEX_RULE,
    FolderScan,
    Source,
    SourceOptions,
    group_of,
    patient_in,
)
from slicebook.errors import ConfigError
from slicebook.io.discovery import DiscoveredFiles, first_names

NAME = re.compile(
    r"(Case_\d+|[A-Z]\d+)_Week(\d+)(?:_LFOV|(_SEMANTIC)(?:_LFOV)?)\.nii(?:\.gz)?", re.IGNORECASE
)
LABEL_NAMES = {0: "background", 1: "body", 2: "bone", 3: "bladder", 4: "rectum", 5: "prostate"}


def is_hipmri3d(discovered: DiscoveredFiles) -> bool:
    """Return whether most NIfTI files have names of the study, images among them."""
    matches = [NAME.fullmatch(path.name) for path in discovered.nifti]
    images = sum(match is not None and not match[3] for match in matches)
    return images > 0 and 2 * sum(match is not None for match in matches) > len(matches)


def find_hipmri3d(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """Pair the image of each case and week with its mask."""
    if options.series:
        raise ConfigError("--series does not apply to hipmri3d, whose file names define the volumes")
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    folder = discovered.folder
    images: dict[tuple[str, int], list[Path]] = defaultdict(list)
    masks: dict[tuple[str, int], list[Path]] = defaultdict(list)
    unmatched: list[Path] = []
    for path in discovered.nifti:
        match = NAME.fullmatch(path.name)
        if match is None:
            unmatched.append(path)
        else:
            (masks if match[3] else images)[match[1].upper(), int(match[2])].append(path)
    doubtful = [key for key in images if len(images[key]) > 1 or len(masks.get(key, ())) > 1]
    sources = []
    for (case, week), paths in images.items():
        if (case, week) in doubtful:
            unmatched += [*paths, *masks.pop((case, week), [])]
            continue
        name = paths[0].relative_to(folder).as_posix()
        patient = patient_in(pattern, name) if pattern else case
        mask = next(iter(masks.pop((case, week), [])), None)
        if patient:
            sources.append(Source(patient, f"week_{week:03} {name}", (paths[0],), (mask,)))
        else:
            unmatched.append(paths[0])
    unmatched += [path for left in masks.values() for path in left]
    notes = []
    if doubtful:
        names = [images[key][0].relative_to(folder).as_posix() for key in sorted(doubtful)]
        notes.append(
            f"{len(doubtful)} weeks have several images or masks and are left out: {first_names(names)}; "
            "keep one of each"
        )
    return FolderScan(
        "hipmri3d",
        tuple(sources),
        tuple(sorted(unmatched)),
        notes=tuple(notes),
        patient_rule=REGEX_RULE if pattern else "the case in the file name",
        label_names=LABEL_NAMES,
    )

"""The folders of the HipMRI 2D data set, one NIfTI file per slice.

keras_slices_train/case_004_week_0_slice_0.nii.gz
keras_slices_seg_train/seg_004_week_0_slice_0.nii.gz     its mask
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from slicebook.data.layouts.hipmri3d import LABEL_NAMES
from slicebook.data.layouts.sources import FolderScan, Source, SourceOptions
from slicebook.data.splits import Split
from slicebook.errors import ConfigError
from slicebook.io.discovery import DiscoveredFiles

_SPLITS: dict[str, Split] = {"train": "train", "validate": "validation", "test": "test"}
FOLDERS = {f"keras_slices_{name}": split for name, split in _SPLITS.items()}
NAME = re.compile(r"(case|seg)_(\d+)_week_(\d+)_slice_(\d+)\.nii(\.gz)?", re.IGNORECASE)


def is_hipmri2d(discovered: DiscoveredFiles) -> bool:
    """Return whether a folder of images exists."""
    return any((discovered.folder / name).is_dir() for name in FOLDERS)


def find_hipmri2d(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List volumes: the 2D files of one case and week, ordered by slice number."""
    if options.mask or options.patient_regex or options.series:
        raise ConfigError(
            "--patient-regex, --mask and --series do not apply to hipmri2d, whose file names define them"
        )
    folder = discovered.folder
    slices: dict[tuple[str, str, Split], list[tuple[int, Path, Path | None]]] = defaultdict(list)
    unmatched: list[Path] = []
    for name, split in _SPLITS.items():
        images, others = _numbered(discovered, folder / f"keras_slices_{name}", "case")
        masks, other_masks = _numbered(discovered, folder / f"keras_slices_seg_{name}", "seg")
        unmatched += [*others, *other_masks]
        for (case, week, number), path in images.items():
            slices[case, week, split].append((int(number), path, masks.pop((case, week, number), None)))
        unmatched += masks.values()
    sources = []
    for (case, week, split), members in slices.items():
        members.sort(key=lambda member: member[0])
        paths, labels = tuple(m[1] for m in members), tuple(m[2] for m in members)
        sources.append(Source(case, f"week_{int(week):03}", paths, labels, split))
    return FolderScan(
        "hipmri2d",
        tuple(sources),
        tuple(unmatched),
        patient_rule="the case in the file name; splits are those of the folders",
        label_names=LABEL_NAMES,
    )


def _numbered(
    discovered: DiscoveredFiles, folder: Path, prefix: str
) -> tuple[dict[tuple[str, str, str], Path], list[Path]]:
    """Return the files below a folder by case, week and slice, and those with other names."""
    numbered: dict[tuple[str, str, str], Path] = {}
    others: list[Path] = []
    for path in discovered.files:
        if not path.is_relative_to(folder):
            continue
        match = NAME.fullmatch(path.name)
        if match is None or match[1].lower() != prefix or match.group(2, 3, 4) in numbered:
            others.append(path)
        else:
            numbered[match[2], match[3], match[4]] = path
    return numbered, others

"""Data sets in BIDS, with masks from their derivatives (https://bids-specification.readthedocs.io).

    sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz
    derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz     its mask; or _mask

The subject is the patient; `participants.tsv` is compared with the subjects that have images. Images of
derivatives are not listed; give the derivative's folder to read them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from slicebook.data.layouts.sources import REGEX_RULE, FolderScan, Source, SourceOptions, group_of, patient_in
from slicebook.io.discovery import DiscoveredFiles, first_names, nifti_stem

_NAME = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*(_[A-Za-z0-9]+)+")
_MASKS = ("dseg", "mask")  # in order of preference; probseg holds no labels
_OF_TIME = {"bold", "dwi", "asl", "epi", "cbv", "pet", "m0scan", "phase"}  # 4D by the specification
# Entities that a derivative adds; all others of a mask are those of its image.
_DERIVED = {"space", "desc", "label", "res", "den", "hemi", "atlas", "seg", "from", "to", "mode", "roi"}
_NATIVE = {None, "orig", "individual", "scanner"}


@dataclass(frozen=True)
class _Name:
    """The parts of a BIDS file name."""

    path: Path
    entities: dict[str, str]
    suffixes: tuple[str, ...]  # the last is the suffix; the image's may precede it (sub-01_T2w_dseg)

    @classmethod
    def of(cls, path: Path) -> _Name | None:
        stem = nifti_stem(path)
        if not _NAME.fullmatch(stem):
            return None
        parts = stem.split("_")
        entities = dict(part.split("-", 1) for part in parts if "-" in part)
        return cls(path, entities, tuple(part for part in parts if "-" not in part))

    @property
    def suffix(self) -> str:
        return self.suffixes[-1]

    @property
    def kind(self) -> str:
        """The entities that distinguish images of one session, and the suffix."""
        entities = [f"{key}-{value}" for key, value in self.entities.items() if key not in {"sub", "ses"}]
        return "_".join([*entities, self.suffix])

    def is_mask_of(self, image: _Name) -> bool:
        """Return whether, by its name, this can be a mask of `image`."""
        space = self.entities.get("space")
        own = {key: value for key, value in self.entities.items() if key not in _DERIVED}
        return (
            self.entities["sub"] == image.entities["sub"]
            and self.entities.get("ses") == image.entities.get("ses")
            and all(image.entities.get(key) == value for key, value in own.items())
            and (space in {*_NATIVE, image.suffix} or space == image.entities.get("space"))
            and self.suffixes[:-1] in ((), (image.suffix,))
        )


def is_bids(discovered: DiscoveredFiles) -> bool:
    """Return whether a folder `sub-X` holds NIfTI files named after it."""
    for path in discovered.nifti:
        first = path.relative_to(discovered.folder).parts[0]
        if first.startswith("sub-") and path.name.startswith(f"{first}_"):
            return True
    return False


def find_bids(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """List the images of each subject, with masks from the same folder or from derivatives."""
    folder = discovered.folder
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    images, masks, unmatched, over_time, derived = _classify_files(discovered, options)
    mask_of, unpaired = _pair([image for image in images if options.takes_series(image.kind)], masks)
    sources: list[Source] = []
    left_out: list[tuple[Source, str]] = []
    for image in images:
        name = image.path.relative_to(folder).as_posix()
        patient = patient_in(pattern, name) if pattern else image.entities["sub"]
        source = Source(patient, name, (image.path,), (mask_of.get(image.path),), kind=image.kind)
        if not options.takes_series(image.kind):
            left_out.append((source, "not of --series"))
        elif not patient:
            unmatched.append(image.path)
        else:
            sources.append(source)
    notes = []
    if over_time:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(over_time.items()))
        notes.append(f"{kinds}: images over time were passed over; --series takes them if they are 3D")
    if derived:
        notes.append(f"{derived} images of derivatives were passed over; give their folder to read them")
    if unpaired:
        shown = first_names([mask.path.relative_to(folder).as_posix() for mask in unpaired])
        notes.append(
            f"{len(unpaired)} masks fit no image, or one of several masks or images: {shown}; choose the "
            "images with --series, or say where masks are with --layout nifti and --mask"
        )
    unmatched += [mask.path for mask in unpaired]
    notes += _compare_participants(folder, {image.entities["sub"] for image in images})
    return FolderScan(
        "bids",
        tuple(sources),
        tuple(sorted(unmatched)),
        left_out=tuple(left_out),
        notes=tuple(notes),
        patient_rule=REGEX_RULE if pattern else "the subject, sub-…",
    )


def _compare_participants(folder: Path, subjects: set[str]) -> list[str]:
    """Return notes if `participants.tsv` lists other subjects than have images."""
    try:
        with (folder / "participants.tsv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    listed = {(row.get("participant_id") or "").strip().removeprefix("sub-") for row in rows} - {""}
    notes = []
    for names, what in (
        (listed - subjects, "participants of participants.tsv have no image here"),
        (subjects - listed if listed else set(), "subjects are not in participants.tsv"),
    ):
        if names:
            notes.append(f"{len(names)} {what}: {first_names([f'sub-{name}' for name in sorted(names)])}")
    return notes


def _classify_files(
    discovered: DiscoveredFiles, options: SourceOptions
) -> tuple[list[_Name], list[_Name], list[Path], Counter[str], int]:
    """Return images, masks, files with other names, 4D images, and the number of derivatives."""
    images: list[_Name] = []
    masks: list[_Name] = []
    unmatched: list[Path] = []
    over_time: Counter[str] = Counter()
    derived = 0
    for path in discovered.nifti:
        name = _Name.of(path)
        is_derivative = "derivatives" in path.relative_to(discovered.folder).parts[:-1]
        if name is None:
            unmatched.append(path)
        elif name.suffix in _MASKS:
            masks.append(name)
        elif is_derivative or name.suffix == "probseg":
            derived += 1
        elif name.suffix in _OF_TIME and options.series is None:
            over_time[name.suffix] += 1
        else:
            images.append(name)
    return images, masks, unmatched, over_time, derived


def _pair(images: list[_Name], masks: list[_Name]) -> tuple[dict[Path, Path], list[_Name]]:
    """Return the mask of each image, and the unpaired masks.

    A mask is paired if its name matches exactly one image. Of several masks of an image, `dseg` is used if it
    is the only one with that suffix.
    """
    by_subject: dict[str, list[_Name]] = defaultdict(list)
    for image in images:
        by_subject[image.entities["sub"]].append(image)
    candidates: dict[Path, list[_Name]] = defaultdict(list)
    unpaired: list[_Name] = []
    for mask in masks:
        fitting = [image for image in by_subject[mask.entities["sub"]] if mask.is_mask_of(image)]
        if len(fitting) == 1:
            candidates[fitting[0].path].append(mask)
        else:
            unpaired.append(mask)
    mask_of: dict[Path, Path] = {}
    for path, several in candidates.items():
        best = next(same for suffix in _MASKS if (same := [m for m in several if m.suffix == suffix]))
        if len(best) == 1:
            mask_of[path] = best[0].path
        else:
            unpaired += best
    return mask_of, unpaired

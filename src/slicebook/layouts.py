"""Find the volumes of a data set: which files belong to which patient. Opens no image.

A new layout is one more `Layout` in `LAYOUTS`: how to recognise its folder, and how to list its sources.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from slicebook.dicom import DicomSeries, find_dicom_series
from slicebook.dicom_file import is_dicom
from slicebook.errors import ConfigError, DataError
from slicebook.volumes import Plane

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class SourceOptions:
    """How to read a folder of volumes.

    Attributes:
        layout: Name of a layout; found out from the folder when not given.
        plane: DICOM: take the series of this plane. NIfTI: slice along it; that of acquisition if not given.
        patient_regex: Searched in a file's path below the folder; its one group is the patient.
        mask: Where the mask of an image is: `_t2=_prostate` replaces text in the image's path, `_seg` is
            added to its name before `.nii` or `.nii.gz`.
    """

    layout: str | None = None
    plane: Plane | None = None
    patient_regex: str | None = None
    mask: str | None = None


EVERY_FILE = SourceOptions()
"""The layout is found out, and nothing is chosen."""


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
    """

    patient: str
    volume: str
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...] = ()
    split: Split | None = None
    series: DicomSeries | None = None

    @property
    def is_stack(self) -> bool:
        """Whether each image is one 2D slice of the volume."""
        return self.series is None and len(self.images) > 1


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Attributes:
        layout: Name of the layout.
        sources: Sorted by patient and volume.
        unmatched: Files that fit neither the layout's names nor the patient regex; masks without an image.
        unreadable: Files whose header could not be read.
    """

    layout: str
    sources: tuple[Source, ...]
    unmatched: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def patients(self) -> tuple[str, ...]:
        """Raw identifiers, sorted, each once."""
        return tuple(sorted({source.patient for source in self.sources}))


@dataclass(frozen=True)
class Layout:
    """One way of arranging files."""

    name: str
    recognises: Callable[[Path], bool]
    find: Callable[[Path, SourceOptions], Found]


def find_sources(folder: str | Path, options: SourceOptions = EVERY_FILE) -> Found:
    """List the volumes below a folder, patient by patient.

    Raises:
        ConfigError: An option does not fit.
        DataError: No layout fits, no volume is found, or a patient is on two sides of the layout's own split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; give the folder that holds the volumes")
    found = _layout_of(folder, options).find(folder, options)
    if not found.sources:
        reason = f" (first: {found.unreadable[0].reason})" if found.unreadable else ""
        raise DataError(f"{folder}: no volume found as {found.layout}{reason}; slicebook reads {_names()}")
    _refuse_shared_patients(folder, found.sources)
    return replace(found, sources=tuple(sorted(found.sources, key=lambda s: (s.patient, s.volume))))


def assign_splits(found: Found, fractions: tuple[float, float, float] | None, seed: int) -> dict[str, Split]:
    """Give each patient, by raw identifier, one split: the layout's own, or drawn by the seed.

    Args:
        found: The volumes of all patients.
        fractions: Share of the patients in train, validation and test; not given, 70, 15 and 15 %.
        seed: Of the draw.

    Raises:
        ConfigError: Fractions are given for a layout with its own split.
        DataError: There are fewer patients than splits to fill.
    """
    own = {source.patient: source.split for source in found.sources if source.split is not None}
    if own:
        if fractions is not None:
            raise ConfigError(
                f"--fractions: the layout {found.layout} has its own split; leave the option out"
            )
        return own
    order = np.random.default_rng(seed).permutation(found.patients).tolist()
    counts = _share_out(len(order), fractions or DEFAULT_FRACTIONS)
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(order, names, strict=True))


def _share_out(patients: int, fractions: tuple[float, float, float]) -> list[int]:
    """Return whole numbers near the fractions that sum to `patients`, at least 1 where one is above 0."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        raise DataError(
            f"{patients} patients cannot fill {wanted} splits: a patient is in one only; add patients, or "
            "name the splits wanted with --fractions (1,0,0: all in train)"
        )
    counts = [max(int(patients * fraction), fraction > 0) for fraction in fractions]
    while sum(counts) != patients:
        surplus = [count - patients * fraction for count, fraction in zip(counts, fractions, strict=True)]
        if sum(counts) < patients:
            counts[int(np.argmin(surplus))] += 1
        else:
            counts[
                int(np.argmax([s if c > 1 else -np.inf for s, c in zip(surplus, counts, strict=True)]))
            ] -= 1
    return counts


def refuse_guesses(folder: Path, found: Found) -> None:
    """Refuse sources that a data set cannot be made of without guessing whose they are, or which are meant.

    Raises:
        DataError: A patient is not known (shows examples of names and of a regex), or DICOM series lie in
            several planes.
    """
    nameless = [source for source in found.sources if not source.patient]
    if nameless:
        names = [source.images[0].relative_to(folder).as_posix() for source in nameless]
        what = "no PatientID in" if found.layout == "dicom" else "no --patient-regex for"
        count = f"{len(names)} of {len(found.sources)} volumes"
        raise DataError(f"{folder}: {what} {count}; {_regex_advice(names)}")
    series = [source.series for source in found.sources if source.series is not None]
    if len({one.plane for one in series}) > 1:
        raise DataError(f"{folder}: series in several planes ({_planes(series)}); choose one with --plane")


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


def _layout_of(folder: Path, options: SourceOptions) -> Layout:
    if options.layout is not None:
        for layout in LAYOUTS:
            if layout.name == options.layout:
                return layout
        raise ConfigError(f"--layout {options.layout!r} is not known; available: {_names()}")
    fitting = [layout for layout in LAYOUTS if layout.recognises(folder)]
    if not fitting:
        kinds = Counter("".join(path.suffixes[-2:]) or "no suffix" for path in _files(folder))
        seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no file"
        raise DataError(f"{folder}: found {seen}; wanted one of the layouts {_names()}")
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise DataError(f"{folder}: holds files of {names}; choose with --layout")
    return fitting[0]


def _refuse_shared_patients(folder: Path, sources: tuple[Source, ...]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        if source.split is not None:
            splits[source.patient].add(source.split)
    shared = [f"{patient} ({', '.join(sorted(s))})" for patient, s in sorted(splits.items()) if len(s) > 1]
    if shared:
        raise DataError(
            f"{folder}: {len(shared)} patients are in two splits: {'; '.join(shared)}; move all files of a "
            "patient into one split"
        )


# HipMRI 2D: keras_slices_train/case_004_week_0_slice_0.nii.gz, its mask keras_slices_seg_train/seg_004_week_…

_HIPMRI_SPLITS: dict[str, Split] = {"train": "train", "validate": "validation", "test": "test"}
_HIPMRI_NAME = re.compile(r"case_(\d+)_week_(\d+)_slice_(\d+)\.nii(\.gz)?")


def _is_hipmri2d(folder: Path) -> bool:
    return any((folder / f"keras_slices_{name}").is_dir() for name in _HIPMRI_SPLITS)


def _find_hipmri2d(folder: Path, options: SourceOptions) -> Found:
    """Take the 2D files of one case and week, in the order of their slice numbers, as one volume."""
    if options.mask or options.patient_regex:
        raise ConfigError("--patient-regex and --mask do not apply to hipmri2d, whose file names say both")
    slices: dict[tuple[str, str, Split], list[tuple[int, Path, Path | None]]] = defaultdict(list)
    unmatched: list[Path] = []
    for name, split in _HIPMRI_SPLITS.items():
        masks = set(_files(folder / f"keras_slices_seg_{name}"))
        for path in _files(folder / f"keras_slices_{name}"):
            match = _HIPMRI_NAME.fullmatch(path.name)
            if match is None:
                unmatched.append(path)
                continue
            case, week, number = match.group(1, 2, 3)
            mask = folder / f"keras_slices_seg_{name}" / path.name.replace("case_", "seg_", 1)
            slices[case, week, split].append((int(number), path, mask if mask in masks else None))
            masks.discard(mask)
        unmatched += sorted(masks)
    sources = []
    for (case, week, split), members in slices.items():
        members.sort(key=lambda member: member[0])
        images, labels = tuple(m[1] for m in members), tuple(m[2] for m in members)
        sources.append(Source(case, f"week_{int(week):03}", images, labels, split))
    return Found("hipmri2d", tuple(sources), tuple(unmatched))


# NIfTI files, flat or nested; the patient by --patient-regex


def _is_nifti(folder: Path) -> bool:
    return not _is_hipmri2d(folder) and any(_is_nifti_name(path) for path in _files(folder))


def _is_nifti_name(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _find_nifti(folder: Path, options: SourceOptions) -> Found:
    names = {path.relative_to(folder).as_posix(): path for path in _files(folder) if _is_nifti_name(path)}
    mask_of = {
        name: mask for name in names if (mask := _mask_name(name, options.mask)) in names and mask != name
    }
    candidates = [name for name in names if name not in set(mask_of.values())]
    if options.patient_regex is None:
        return Found("nifti", tuple(_nifti_source("", name, names, mask_of) for name in candidates))
    pattern = group_of(options.patient_regex, "--patient-regex")
    sources, unmatched = [], []
    for name in candidates:
        match = pattern.search(name)
        if match is not None and match.group(1):
            sources.append(_nifti_source(match.group(1), name, names, mask_of))
        else:
            unmatched.append(names[name])
    if not sources and names:
        raise DataError(
            f"{folder}: --patient-regex {options.patient_regex!r} fits no file; {_regex_advice(list(names))}"
        )
    if options.mask and not mask_of:
        raise DataError(
            f"{folder}: --mask {options.mask!r} finds no mask; for {sources[0].images[0].name} it looked for "
            f"{_mask_name(sources[0].volume, options.mask)}"
        )
    return Found("nifti", tuple(sources), tuple(unmatched))


def _nifti_source(patient: str, name: str, names: dict[str, Path], mask_of: dict[str, str]) -> Source:
    mask = mask_of.get(name)
    return Source(patient, name, (names[name],), (names[mask] if mask else None,))


def _mask_name(image: str, rule: str | None) -> str:
    """Return the path of an image's mask below the folder; its own where the rule does not apply."""
    if not rule:
        return image
    if "=" in rule:
        old, _, new = rule.partition("=")
        if not old:
            raise ConfigError(f"--mask {rule!r}: nothing before '='; example: _t2=_prostate")
        return image.replace(old, new)
    return re.sub(r"(?i)(\.nii(\.gz)?)$", lambda ending: rule + ending[0], image)


def _regex_advice(names: list[str]) -> str:
    examples = ", ".join(sorted(names)[:3])
    return (
        f"files are named like {examples}; give the part that names the patient as one group, "
        r"for example --patient-regex '(Case\d+)_t2' for Case00_t2.nii.gz"
    )


# DICOM trees; the patient by PatientID, or by --patient-regex on the path


def _is_dicom(folder: Path) -> bool:
    return any(is_dicom(path) for path in _files(folder) if not _is_nifti_name(path))


def _find_dicom(folder: Path, options: SourceOptions) -> Found:
    if options.mask:
        raise ConfigError("--mask does not apply to DICOM; masks are read from NIfTI")
    unreadable: list[Unreadable] = []
    every = find_dicom_series(
        folder, unreadable=lambda path, error: unreadable.append(Unreadable(path, str(error)))
    )
    chosen = [series for series in every if options.plane in (None, series.plane)]
    if every and not chosen:
        raise DataError(f"{folder}: no {options.plane} series, found {_planes(every)}; choose with --plane")
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    sources = []
    for series in chosen:
        patient = series.patient_id
        if pattern is not None:
            match = pattern.search(series.files[0].relative_to(folder).as_posix())
            patient = (match.group(1) or "") if match else ""
        key = f"{series.series_uid} {series.acquisition}"
        sources.append(Source(patient, key, series.files, series=series))
    return Found("dicom", tuple(sources), unreadable=tuple(unreadable))


def _planes(series: list[DicomSeries]) -> str:
    counts = Counter(one.plane for one in series)
    return ", ".join(f"{count} {plane}" for plane, count in counts.most_common())


LAYOUTS = (
    Layout("hipmri2d", _is_hipmri2d, _find_hipmri2d),
    Layout("nifti", _is_nifti, _find_nifti),
    Layout("dicom", _is_dicom, _find_dicom),
)


def _names() -> str:
    return ", ".join(layout.name for layout in LAYOUTS)


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )

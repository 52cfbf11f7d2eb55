"""Find the volumes of a data set: which files belong to which patient. Opens no image.

A new layout is one more `Layout` in `LAYOUTS`: how to recognise its folder, and how to list its sources.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slicebook import hipmri2d, nnunet
from slicebook.bids import find_bids, is_bids
from slicebook.dicom_layout import find_dicom, is_dicom_tree, planes_of
from slicebook.discovery import DiscoveredFiles, find_files, first_names
from slicebook.errors import ConfigError, DataError
from slicebook.sources import EVERY_FILE as EVERY_FILE
from slicebook.sources import SPLITS as SPLITS
from slicebook.sources import Found as Found
from slicebook.sources import Source as Source
from slicebook.sources import SourceOptions as SourceOptions
from slicebook.sources import Split as Split
from slicebook.sources import Unreadable as Unreadable
from slicebook.sources import group_of as group_of
from slicebook.sources import patient_in, regex_advice

DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Layout:
    """One way of arranging files."""

    name: str
    recognises: Callable[[DiscoveredFiles], bool]
    find: Callable[[DiscoveredFiles, SourceOptions], Found]


def find_sources(folder: str | Path, options: SourceOptions = EVERY_FILE) -> Found:
    """List the volumes below a folder, patient by patient.

    Raises:
        ConfigError: An option does not fit.
        DataError: No layout fits, no volume is found, or a patient is on two sides of the layout's own split.
    """
    discovered = find_files(folder)
    found = _layout_of(discovered, options).find(discovered, options)
    notes = (*discovered.passed_over(), *found.notes)
    if not found.sources:
        reasons = [bad.reason for bad in found.unreadable[:1]] + [_left_out(found)] * bool(found.left_out)
        reason = f" ({'; '.join((*reasons, *notes))})" if reasons or notes else ""
        raise DataError(f"{folder}: no volume found as {found.layout}{reason}; slicebook reads {_names()}")
    _refuse_shared_patients(Path(folder), found.sources)
    ordered = tuple(sorted(found.sources, key=lambda source: (source.patient, source.volume)))
    return replace(found, sources=ordered, notes=notes, folder=Path(folder))


def _left_out(found: Found) -> str:
    counts = Counter(reason for _, reason in found.left_out)
    return ", ".join(f"{count} volumes left out: {reason}" for reason, count in counts.items())


def assign_splits(
    patients: Sequence[str],
    given: Mapping[str, Split],
    fractions: tuple[float, float, float] | None,
    seed: int,
    *,
    advice: str = "",
) -> dict[str, Split]:
    """Give each patient, by raw identifier, one split: the data set's own, or drawn by the seed.

    Args:
        patients: Each once, in a fixed order.
        given: The splits that the data set itself gives to patients.
        fractions: Share of the patients in train, validation and test; not given, 70, 15 and 15 %.
        seed: Seed of the draw.
        advice: What to do where there are too few patients, for the message.

    Raises:
        ConfigError: Fractions are given for a data set with its own split.
        DataError: There are fewer patients than splits to fill.
    """
    if given and fractions is not None:
        raise ConfigError("--fractions: the data set has its own split; leave the option out")
    drawn = [patient for patient in patients if patient not in given]
    if not drawn:
        return dict(given)
    shares = fractions or DEFAULT_FRACTIONS
    if given:  # its test patients are known, and the others are for training
        shares = (shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1]), 0.0)
    order = np.random.default_rng(seed).permutation(drawn).tolist()
    counts = _share_out(len(order), shares, advice)
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return {**given, **dict(zip(order, names, strict=True))}


def _share_out(patients: int, fractions: tuple[float, float, float], hint: str) -> list[int]:
    """Return whole numbers near the fractions that sum to `patients`, at least 1 where one is above 0."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        many = "1 patient" if patients == 1 else f"{patients} patients"
        remedy = (
            "training takes two patients or more, and --fractions 0 0 1 makes a test set of one"
            if patients == 1
            else "or give --fractions 0.5 0.5 0 to train with these, --fractions 0 0 1 to test on them"
        )
        raise DataError(
            f"{many} cannot fill {wanted} splits: a patient is in one only; {f'{hint}; ' if hint else ''}"
            f"add patients; {remedy}"
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


def shared_identifier_advice(found: Found) -> str:
    """Return how to part folders that share a patient; empty where none do. Names no patient."""
    if found.folder is None:
        return ""
    folders = [source.images[0].relative_to(found.folder).parts[:-1] for source in found.sources]
    depth = sum(len(set(level)) == 1 for level in zip(*folders, strict=False))
    parted = {
        (source.patient, parts[depth])
        for source, parts in zip(found.sources, folders, strict=True)
        if parts[depth:]
    }
    patients = {patient for patient, _ in parted}
    if len({part for _, part in parted}) < max(2, 2 * len(patients)):
        return ""
    what = "PatientID" if found.layout == "dicom" else "patient"
    numbers = f"one {what}" if len(patients) == 1 else f"{len(patients)} {what}s"
    regex = f"^{'[^/]+/' * depth}([^/]+)/"
    return (
        f"{len(parted)} folders share {numbers}: if each folder is a person, give --patient-regex '{regex}'"
    )


def suspicions(found: Found) -> tuple[str, ...]:
    """Return what makes the patients of a folder doubtful, a line each. Names files, and no patient."""
    lines = [hint] if (hint := shared_identifier_advice(found)) else []
    like: dict[str, dict[str, Source]] = defaultdict(dict)
    for source in found.sources:
        plain = re.sub(r"[\W_]+|(?<!\d)0+(?=\d)", "", source.patient.casefold())
        like[plain].setdefault(source.patient, source)
    doubtful = [list(group.values()) for plain, group in like.items() if plain and len(group) > 1]
    if doubtful:
        names = [" and ".join(str(source.images[0]) for source in group) for group in doubtful]
        lines.append(
            f"{len(doubtful)} patients are named alike but for case, punctuation or zeros: "
            f"{first_names(names)}; if they are one person, name the patient by --patient-regex"
        )
    return tuple(lines)


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
        advice = nnunet.patient_advice(found.sources) if found.layout == "nnunet" else regex_advice(names)
        raise DataError(f"{folder}: {what} {count}; {advice}")
    series = [source.series for source in found.sources if source.series is not None]
    if len({one.plane for one in series}) > 1:
        raise DataError(f"{folder}: series in several planes ({planes_of(series)}); choose one with --plane")


def _layout_of(discovered: DiscoveredFiles, options: SourceOptions) -> Layout:
    if options.layout is not None:
        for layout in LAYOUTS:
            if layout.name == options.layout:
                return layout
        raise ConfigError(f"--layout {options.layout!r} is not known; available: {_names()}")
    folder = discovered.folder
    fitting = [layout for layout in LAYOUTS if layout.recognises(discovered)]
    if not fitting:
        kinds = Counter("".join(path.suffixes[-2:]) or "no suffix" for path in discovered.files)
        seen = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no file"
        passed_over = "".join(f"; {line}" for line in discovered.passed_over())
        raise DataError(f"{folder}: found {seen}; wanted one of the layouts {_names()}{passed_over}")
    own_rules = [layout for layout in fitting if layout.name not in ("nifti", "dicom")]
    if own_rules and not (options.mask and own_rules[0].name != "hipmri2d"):
        fitting = [layout for layout in fitting if layout.name != "nifti"]
    else:  # with a rule of masks, every file is named by that rule
        fitting = [layout for layout in fitting if layout not in own_rules]
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise DataError(f"{folder}: holds files of {names}; choose with --layout")
    if fitting[0].name == "nifti" and not options.mask and not options.patient_regex:
        _refuse_wrong_level(discovered)
    return fitting[0]


def _refuse_wrong_level(discovered: DiscoveredFiles) -> None:
    """Refuse a folder around, or inside of, one whose layout would be recognised; names that one."""
    right: dict[Path, str] = {}
    for path in discovered.nifti:
        parent = path.parent
        if parent.name in hipmri2d.FOLDERS and hipmri2d.NAME.fullmatch(path.name):
            right[parent.absolute().parent] = "hipmri2d"
        elif parent.name == "imagesTr" and parent != discovered.folder:
            right[parent.parent] = "nnunet"
    if right:
        names = first_names([str(folder) for folder in sorted(right)])
        kinds = " and ".join(sorted(set(right.values())))
        raise DataError(
            f"{discovered.folder}: the layout {kinds} is that of {names}; give "
            f"{'that folder' if len(right) == 1 else 'one of them'}"
        )


def _refuse_shared_patients(folder: Path, sources: tuple[Source, ...]) -> None:
    if not any(source.split for source in sources):
        return
    splits: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        splits[source.patient].add(source.split or "train or validation")
    shared = {patient: names for patient, names in sorted(splits.items()) if len(names) > 1}
    if shared:
        first = {source.patient: source.images[0] for source in reversed(sources)}
        where = [f"{first[patient].name} ({', '.join(sorted(names))})" for patient, names in shared.items()]
        raise DataError(
            f"{folder}: {len(shared)} patients are in two splits: {first_names(where)}; move all files of a "
            "patient into one split"
        )


# NIfTI files, flat or nested; the patient by --patient-regex


def is_nifti(discovered: DiscoveredFiles) -> bool:
    """Return whether any file is NIfTI by its name."""
    return bool(discovered.nifti)


def find_nifti(discovered: DiscoveredFiles, options: SourceOptions) -> Found:
    """List NIfTI files, flat or nested; the patient by --patient-regex, the mask by --mask."""
    if options.series:
        raise ConfigError("--series does not apply to nifti; narrow --patient-regex to the files wanted")
    folder = discovered.folder
    names = {path.relative_to(folder).as_posix(): path for path in discovered.nifti}
    by_stem = {_without_ending(name): name for name in names}
    mask_of = {}
    for name in names:
        wanted = _mask_name(name, options.mask)
        mask = wanted if wanted in names else by_stem.get(_without_ending(wanted), name)
        if wanted != name and mask != name:
            mask_of[name] = mask
    candidates = [name for name in names if name not in set(mask_of.values())]
    if options.patient_regex is None:
        return Found("nifti", tuple(_nifti_source("", name, names, mask_of) for name in candidates))
    pattern = group_of(options.patient_regex, "--patient-regex")
    sources, unmatched = [], []
    for name in candidates:
        if patient := patient_in(pattern, name):
            sources.append(_nifti_source(patient, name, names, mask_of))
        else:
            unmatched.append(names[name])
    if not sources and names:
        raise DataError(
            f"{folder}: --patient-regex {options.patient_regex!r} fits no file; {regex_advice(list(names))}"
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


def _without_ending(name: str) -> str:
    return re.sub(r"(?i)\.nii(\.gz)?$", "", name)


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


LAYOUTS = (
    Layout("hipmri2d", hipmri2d.is_hipmri2d, hipmri2d.find_hipmri2d),
    Layout("nnunet", nnunet.is_nnunet, nnunet.find_nnunet),
    Layout("bids", is_bids, find_bids),
    Layout("nifti", is_nifti, find_nifti),
    Layout("dicom", is_dicom_tree, find_dicom),
)


def _names() -> str:
    return ", ".join(layout.name for layout in LAYOUTS)

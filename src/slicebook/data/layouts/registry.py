"""Find the volumes of a data set, and the patients they belong to. Opens no image.

A layout is an entry of `LAYOUTS`: how to recognise its folder, and how to list its volumes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slicebook.data.layouts import hipmri2d, hipmri3d, nnunet
from slicebook.data.layouts.bids import find_bids, is_bids
from slicebook.data.layouts.dicom import find_dicom, is_dicom_tree, planes_of
from slicebook.data.layouts.nifti import find_itk, find_nifti, is_itk, is_nifti
from slicebook.data.layouts.pictures import find_pictures, is_pictures
from slicebook.data.layouts.sources import EVERY_FILE, FolderScan, Source, SourceOptions, regex_advice
from slicebook.errors import ConfigError, DataError
from slicebook.io.discovery import DiscoveredFiles, find_files, first_names, is_nifti_name, nifti_stem

_MASK_NAME = re.compile(r"(.+)[_.-](?:dseg|seg|segmentation|mask|label|labels)", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetLayout:
    """How the files of a data set are arranged."""

    name: str
    recognises: Callable[[DiscoveredFiles], bool]
    find: Callable[[DiscoveredFiles, SourceOptions], FolderScan]


def find_sources(folder: str | Path, options: SourceOptions = EVERY_FILE) -> FolderScan:
    """List the volumes below a folder, sorted by patient.

    Raises:
        ConfigError: An option is invalid or does not apply to the layout.
        DataError: No layout fits, no volume is found, or a patient is in two splits of the layout.
    """
    discovered = find_files(folder)
    scan = _layout_of(discovered, options).find(discovered, options)
    notes = (*discovered.passed_over(), *_images_without_mask(scan), *scan.notes)
    if not scan.sources:
        reasons = [bad.reason for bad in scan.unreadable[:1]] + [_left_out(scan)] * bool(scan.left_out)
        reason = f" ({'; '.join((*reasons, *notes))})" if reasons or notes else ""
        raise DataError(f"{folder}: no volume found as {scan.layout}{reason}; slicebook reads {_names()}")
    _refuse_shared_patients(Path(folder), scan.sources)
    ordered = tuple(sorted(scan.sources, key=lambda source: (source.patient, source.volume)))
    scan = replace(scan, sources=ordered, folder=Path(folder))
    return replace(scan, notes=(description_of(scan), *notes))


def description_of(scan: FolderScan) -> str:
    """Return in one line what a folder was taken for, and the rule for its patients."""
    patients = f" of {len(scan.patients)} patients" if all(source.patient for source in scan.sources) else ""
    masks = sum(any(source.labels) for source in scan.sources)
    with_masks = f", {masks} with masks" if masks else ""
    return (
        f"taken for {scan.layout}: {len(scan.sources)} volumes{patients}{with_masks}; "
        f"the patient is {scan.patient_rule}"
    )


def _images_without_mask(scan: FolderScan) -> list[str]:
    """Return a note on images without a mask, if others have one; they are used without."""
    without = [
        path
        for source in scan.sources
        for path, mask in zip(source.images, source.labels or [None] * len(source.images), strict=False)
        if mask is None
    ]
    if not without or not any(any(source.labels) for source in scan.sources):
        return []
    return [
        f"{len(without)} images have no mask and are used without: {first_names([p.name for p in without])}"
    ]


def image_files(discovered: DiscoveredFiles) -> tuple[tuple[Path, ...], str]:
    """Return the NIfTI files that are images, and the name of their layout.

    Masks, and files unknown to the layout, are left out. In a layout that does not define masks, a file is a
    mask if its name is that of another file with `seg`, `mask` or `label` added.
    """
    named = (layout for layout in LAYOUTS if layout.name not in _PLAIN)
    layout = next((layout for layout in named if layout.recognises(discovered)), None)
    if layout is not None:
        scan = layout.find(discovered, EVERY_FILE)
        sources = (*scan.sources, *(source for source, _ in scan.left_out))
        images = {path for source in sources for path in source.images if is_nifti_name(path)}
        return tuple(sorted(images)), layout.name
    stems = {path.parent / nifti_stem(path) for path in discovered.nifti}

    def is_mask(path: Path) -> bool:
        name = _MASK_NAME.fullmatch(nifti_stem(path))
        return name is not None and path.parent / name[1] in stems

    return tuple(path for path in discovered.nifti if not is_mask(path)), "nifti"


def _left_out(scan: FolderScan) -> str:
    counts = Counter(reason for _, reason in scan.left_out)
    return ", ".join(f"{count} volumes left out: {reason}" for reason, count in counts.items())


def shared_identifier_advice(scan: FolderScan) -> str:
    """Return advice if many folders share one patient, else an empty text. It names no patient."""
    if scan.folder is None:
        return ""
    folders = [source.images[0].relative_to(scan.folder).parts[:-1] for source in scan.sources]
    depth = sum(len(set(level)) == 1 for level in zip(*folders, strict=False))
    parted = {
        (source.patient, parts[depth])
        for source, parts in zip(scan.sources, folders, strict=True)
        if parts[depth:]
    }
    patients = {patient for patient, _ in parted}
    if len({part for _, part in parted}) < max(2, 2 * len(patients)):
        return ""
    what = "PatientID" if scan.layout == "dicom" else "patient"
    numbers = f"one {what}" if len(patients) == 1 else f"{len(patients)} {what}s"
    regex = f"^{'[^/]+/' * depth}([^/]+)/"
    return (
        f"{len(parted)} folders share {numbers}: if each folder is a person, give --patient-regex '{regex}'"
    )


def patient_warnings(scan: FolderScan) -> tuple[str, ...]:
    """Return warnings about the patients of a folder, one line each. They name files, not patients."""
    lines = [hint] if (hint := shared_identifier_advice(scan)) else []
    like: dict[str, dict[str, Source]] = defaultdict(dict)
    for source in scan.sources:
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


def refuse_guesses(folder: Path, scan: FolderScan) -> None:
    """Refuse sources whose patient or plane would have to be guessed.

    Raises:
        DataError: A patient is unknown (shows example names and a regex), or DICOM series have several
            planes.
    """
    nameless = [source for source in scan.sources if not source.patient]
    if nameless:
        names = [source.images[0].relative_to(folder).as_posix() for source in nameless]
        what = "no PatientID in" if scan.layout == "dicom" else "no --patient-regex for"
        count = f"{len(names)} of {len(scan.sources)} volumes"
        advice = nnunet.patient_advice(scan.sources) if scan.layout == "nnunet" else regex_advice(names)
        raise DataError(f"{folder}: {what} {count}; {advice}")
    if scan.layout == "pictures" and any(source.pixel_mm is None for source in scan.sources):
        raise DataError(
            f"{folder}: pictures do not say the size of their pixels; give --pixel-mm ROW COLUMN, the "
            "distances between rows and between columns in mm"
        )
    series = [source.series for source in scan.sources if source.series is not None]
    if len({item.plane for item in series}) > 1:
        raise DataError(f"{folder}: series in several planes ({planes_of(series)}); choose one with --plane")


def _layout_of(discovered: DiscoveredFiles, options: SourceOptions) -> DatasetLayout:
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
    own_rules = [layout for layout in fitting if layout.name not in _PLAIN]
    if own_rules and not (options.mask and own_rules[0].name != "hipmri2d"):
        fitting = [layout for layout in fitting if layout.name in ("dicom", own_rules[0].name)]
    else:  # a rule for masks applies to all files
        fitting = [layout for layout in fitting if layout not in own_rules]
    if "dicom" in {layout.name for layout in fitting}:  # pictures beside DICOM are previews
        fitting = [layout for layout in fitting if layout.name != "pictures"]
    if len(fitting) > 1:
        names = " and ".join(layout.name for layout in fitting)
        raise DataError(f"{folder}: holds files of {names}; choose with --layout")
    if fitting[0].name == "nifti" and not options.mask and not options.patient_regex:
        _refuse_wrong_level(discovered)
    return fitting[0]


def _refuse_wrong_level(discovered: DiscoveredFiles) -> None:
    """Refuse a folder above or below one whose layout would be recognised, and name that folder."""
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
            f"{discovered.folder}: the layout {kinds} begins in {names}; give "
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


LAYOUTS = (
    DatasetLayout("hipmri2d", hipmri2d.is_hipmri2d, hipmri2d.find_hipmri2d),
    DatasetLayout("nnunet", nnunet.is_nnunet, nnunet.find_nnunet),
    DatasetLayout("bids", is_bids, find_bids),
    DatasetLayout("hipmri3d", hipmri3d.is_hipmri3d, hipmri3d.find_hipmri3d),
    DatasetLayout("nifti", is_nifti, find_nifti),
    DatasetLayout("itk", is_itk, find_itk),
    DatasetLayout("pictures", is_pictures, find_pictures),
    DatasetLayout("dicom", is_dicom_tree, find_dicom),
)
_PLAIN = ("nifti", "itk", "pictures", "dicom")  # layouts of any folder with files of one format


def _names() -> str:
    return ", ".join(layout.name for layout in LAYOUTS)

"""The folders of nnU-Net and of the Medical Segmentation Decathlon.

imagesTr/CASE_0000.nii.gz     channel 0 of a case; without _0000 in the Decathlon, and in sets made like it
labelsTr/CASE.nii.gz          its mask
imagesTs, labelsTs            test cases; their masks are often withheld
dataset.json                  names of the channels and of the labels

In the Decathlon, several channels of a case are the fourth axis of one file. Files may also be .nrrd, .mha,
.png or .tif.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slicebook.data.layouts.sources import (
    REGEX_RULE,
    UNKNOWN_RULE,
    FolderScan,
    Source,
    SourceOptions,
    group_of,
    patient_in,
)
from slicebook.data.splits import Split
from slicebook.io.discovery import DiscoveredFiles, is_picture_name, volume_stem

_SIDES: tuple[tuple[str, Split | None], ...] = (("Tr", None), ("Ts", "test"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def patient_advice(sources: Sequence[Source]) -> str:
    """Return advice on --patient-regex; the layout does not define patients."""
    channel = r"_\d{4}" if any(source.kind and source.channel is None for source in sources) else ""
    suffixes = sorted({re.sub(r"^.*?(\.nii)?(\.\w+)$", r"\1\2", source.images[0].name) for source in sources})
    ending = r"\.nii" if all(suffix.lower().startswith(".nii") for suffix in suffixes) else r"\."
    return (
        "a case may be one of several visits of a person; where each case is one person, give "
        rf"--patient-regex 'images[^/]*/(.+?){channel}{ending}'"
    )


def is_nnunet(discovered: DiscoveredFiles) -> bool:
    """Return whether there is a folder `imagesTr` with images in it."""
    return any(path.parent == discovered.folder / "imagesTr" for path in discovered.volumes)


def find_nnunet(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """Pair each channel of a case with the mask of the case. `imagesTs` is the test split."""
    folder = discovered.folder
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    described = _read_description(folder / "dataset.json")
    names = _channel_names(described)
    sources: list[Source] = []
    left_out: list[tuple[Source, str]] = []
    unmatched: list[Path] = []
    for side, split in _SIDES:
        images = [path for path in discovered.volumes if path.parent == folder / f"images{side}"]
        masks = {volume_stem(p): p for p in discovered.volumes if p.parent == folder / f"labels{side}"}
        has_channels = _has_channels([volume_stem(path) for path in images], masks)
        stacked = _stacked_channels(described, names) if not has_channels else {}
        used = set()
        for path in images:
            match = _CHANNEL.fullmatch(volume_stem(path)) if has_channels else None
            case, channel = match.groups() if match else (volume_stem(path), "")
            mask = masks.get(case)
            used.add(mask)
            patient = patient_in(pattern, path.relative_to(folder).as_posix())
            for source in _sources_of(folder, path, mask, channel, names, stacked, options):
                source = replace(source, patient=patient, split=split)
                if not options.takes_series(source.kind):
                    left_out.append((source, "not of --series"))
                elif pattern is not None and not patient:
                    unmatched.append(path)
                else:
                    sources.append(source)
        unmatched += [mask for mask in masks.values() if mask not in used]
    return FolderScan(
        "nnunet",
        tuple(sources),
        tuple(dict.fromkeys(unmatched)),
        left_out=tuple(left_out),
        patient_rule=REGEX_RULE if pattern else UNKNOWN_RULE,
        label_names=_label_names(described),
    )


def _sources_of(
    folder: Path,
    path: Path,
    mask: Path | None,
    channel: str,
    names: Mapping[str, str],
    stacked: Mapping[int, str],
    options: SourceOptions,
) -> list[Source]:
    """Return one source, or one for each channel along the fourth axis; without patient and split."""
    name = path.relative_to(folder).as_posix()
    pixel_mm = options.pixel_mm if is_picture_name(path) else None
    kind = f"channel {channel} {names.get(channel, '')}".strip() if channel else ""
    if not stacked:
        return [Source("", name, (path,), (mask,), kind=kind, pixel_mm=pixel_mm)]
    return [
        Source("", f"{name} {channel_kind}", (path,), (mask,), kind=channel_kind, channel=index)
        for index, channel_kind in stacked.items()
    ]


def _has_channels(stems: list[str], masks: Iterable[str]) -> bool:
    """Return whether names end in a channel, as in nnU-Net, and not in a case number (amos_0001)."""
    matches = [_CHANNEL.fullmatch(stem) for stem in stems]
    if not all(matches) or set(stems) & set(masks):
        return False
    first = {match[1] for match in matches if match and match[2] == "0000"}
    return all(match[1] in first for match in matches if match)


def _read_description(path: Path) -> Mapping[str, Any]:
    """Return `dataset.json`; empty if there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _channel_names(described: Mapping[str, Any]) -> dict[str, str]:
    """Return channel names by their four digits; empty if `dataset.json` does not define them."""
    try:
        names = described.get("channel_names") or described.get("modality") or {}
        return {f"{int(number):04}": str(name) for number, name in names.items()}
    except (ValueError, AttributeError):
        return {}


def _stacked_channels(described: Mapping[str, Any], names: Mapping[str, str]) -> dict[int, str]:
    """Return the channels along the fourth axis by index: those of the Decathlon's 4D data sets."""
    if described.get("tensorImageSize") != "4D" or len(names) < 2:
        return {}
    return {int(number): f"channel {number} {name}" for number, name in names.items()}


def _label_names(described: Mapping[str, Any]) -> dict[int, str]:
    """Return label names by value: nnU-Net maps names to values, the Decathlon values to names."""
    names: dict[int, str] = {}
    labels = described.get("labels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        for number, name in ((value, key), (key, value)):
            if re.fullmatch(r"\d{1,3}", str(number)) and not isinstance(name, (list, int)):
                names.setdefault(int(number), str(name))
                break
    return names

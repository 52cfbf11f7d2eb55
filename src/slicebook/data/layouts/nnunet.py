"""The folders of nnU-Net and of the Medical Segmentation Decathlon.

imagesTr/CASE_0000.nii.gz     channel 0 of a case; without _0000 in the Decathlon, and in sets made like it
labelsTr/CASE.nii.gz          its mask
imagesTs, labelsTs            test cases; their masks are often withheld
dataset.json                  names of the channels
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from slicebook.data.layouts.sources import FolderScan, Source, SourceOptions, group_of, patient_in
from slicebook.data.splits import Split
from slicebook.io.discovery import DiscoveredFiles, nifti_stem

_SIDES: tuple[tuple[str, Split | None], ...] = (("Tr", None), ("Ts", "test"))
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def patient_advice(sources: Sequence[Source]) -> str:
    """Return advice on --patient-regex; the layout does not define patients."""
    channel = r"_\d{4}" if any(source.kind for source in sources) else ""
    return (
        "a case may be one of several visits of a person; where each case is one person, give "
        rf"--patient-regex 'images[^/]*/(.+?){channel}\.nii'"
    )


def is_nnunet(discovered: DiscoveredFiles) -> bool:
    """Return whether there is a folder `imagesTr` with NIfTI files in it."""
    return any(path.parent == discovered.folder / "imagesTr" for path in discovered.nifti)


def find_nnunet(discovered: DiscoveredFiles, options: SourceOptions) -> FolderScan:
    """Pair each channel of a case with the mask of the case. `imagesTs` is the test split."""
    folder = discovered.folder
    pattern = group_of(options.patient_regex, "--patient-regex") if options.patient_regex else None
    names = _channel_names(folder / "dataset.json")
    sources: list[Source] = []
    left_out: list[tuple[Source, str]] = []
    unmatched: list[Path] = []
    for side, split in _SIDES:
        images = [path for path in discovered.nifti if path.parent == folder / f"images{side}"]
        masks = {nifti_stem(p): p for p in discovered.nifti if p.parent == folder / f"labels{side}"}
        has_channels = _has_channels([nifti_stem(path) for path in images], masks)
        used = set()
        for path in images:
            stem = nifti_stem(path)
            match = _CHANNEL.fullmatch(stem) if has_channels else None
            case, channel = match.groups() if match else (stem, "")
            kind = f"channel {channel} {names.get(channel, '')}".strip() if channel else ""
            mask = masks.get(case)
            used.add(mask)
            name = path.relative_to(folder).as_posix()
            patient = patient_in(pattern, name)
            source = Source(patient, name, (path,), (mask,), split, kind=kind)
            if not options.takes_series(kind):
                left_out.append((source, "not of --series"))
            elif pattern is not None and not patient:
                unmatched.append(path)
            else:
                sources.append(source)
        unmatched += [mask for mask in masks.values() if mask not in used]
    return FolderScan("nnunet", tuple(sources), tuple(unmatched), left_out=tuple(left_out))


def _has_channels(stems: list[str], masks: Iterable[str]) -> bool:
    """Return whether names end in a channel, as in nnU-Net, and not in a case number (amos_0001)."""
    matches = [_CHANNEL.fullmatch(stem) for stem in stems]
    if not all(matches) or set(stems) & set(masks):
        return False
    first = {match[1] for match in matches if match and match[2] == "0000"}
    return all(match[1] in first for match in matches if match)


def _channel_names(path: Path) -> dict[str, str]:
    """Return channel names by their four digits; empty if `dataset.json` does not define them."""
    try:
        content = json.loads(path.read_bytes())
        names = content.get("channel_names") or content.get("modality") or {}
        return {f"{int(number):04}": str(name) for number, name in names.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}

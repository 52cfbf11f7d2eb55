"""Folders of results as one file to download."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from slicebook.export.generated_set import GeneratedSet, SetFacts
from slicebook.export.set_formats import check_format, export_set

FORMATS: Mapping[str, str] = {
    "NIfTI with manifest": "nifti",
    "nnU-Net": "nnunet",
    "BIDS": "bids",
    "DICOM": "dicom",
    "PNG": "png",
}
"""Words of the page, and the formats of `slicebook generate --format`."""


def convert(folder: Path, format_name: str, facts: SetFacts) -> Path:
    """Return a folder with a generated set in a format, as `slicebook generate` writes it.

    Raises:
        ConfigError: The format needs masks, more samples, or an extra.
    """
    if format_name == "nifti":
        return folder
    name = "Dataset501_Synthetic" if format_name == "nnunet" else "slicebook-generated"
    out = folder.with_name(f"{folder.name}-as-{format_name}") / name
    if not out.is_dir():
        made = GeneratedSet.read(folder, facts.label_names)
        check_format(format_name, out, with_masks=made.with_masks, count=len(made.items))
        export_set(folder, out, format_name, facts)
    return out


def pack(folder: Path, name: str, root: str | None = None) -> Path:
    """Write a folder into a zip beside it; equal files give equal zips. Its files are compressed already.

    Args:
        folder: The folder.
        name: Of the zip.
        root: Name of the folder in the zip; that of the zip by default.
    """
    target = folder.with_name(f"{folder.name}-{name}") / name
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(f"{root or Path(name).stem}/{path.relative_to(folder).as_posix()}")
            info.external_attr = 0o644 << 16
            with archive.open(info, "w") as packed, path.open("rb") as file:
                shutil.copyfileobj(file, packed)
    return target

"""Folders of results as one file to download."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Convert = Callable[[Path], Path]
"""Returns the folder to pack for a generated set."""


def as_written(folder: Path) -> Path:
    """Return the folder that `slicebook generate` wrote: NIfTI files, pictures and the manifest."""
    return folder


FORMATS: Mapping[str, Convert] = {"NIfTI with manifest": as_written}


def pack(folder: Path, name: str) -> Path:
    """Write a folder into a zip beside it; equal files give equal zips. Its files are compressed already."""
    target = folder.with_name(f"{folder.name}-{name}") / name
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(f"{Path(name).stem}/{path.relative_to(folder).as_posix()}")
            info.external_attr = 0o644 << 16
            with archive.open(info, "w") as packed, path.open("rb") as file:
                shutil.copyfileobj(file, packed)
    return target

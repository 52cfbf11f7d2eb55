"""A volume that a user opened: read once, kept on disk, looked at slice by slice."""

from __future__ import annotations

import shutil
import stat
import uuid
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from slicebook.errors import DataError
from slicebook.inference.volumes import Stack
from slicebook.io.dicom_series import find_dicom_series, read_dicom_series
from slicebook.io.limits import Limits
from slicebook.io.nifti import read_nifti, write_nifti
from slicebook.io.volume import Orientation, Plane, Volume, from_slices, plane_of

MAX_UPLOAD = 256 * 1024**2  # bytes
LIMITS = Limits(max_bytes=256 * 1024**2)  # as float32: 512 × 512 pixels by 256 slices
MAX_ENTRIES = 4096  # of a zip
CHUNK = 1024**2


@dataclass(frozen=True, eq=False)
class Study:
    """An open volume.

    Attributes:
        source: NIfTI file, or folder of the DICOM files of one series: what a command takes as IN.
        upload: NIfTI file, or folder of all DICOM files that were uploaded.
        title: What it is, in words that identify nobody.
        others: Titles of all series of the upload, where it has several.
        plane: Requested slice orientation.
        size: Rows and columns of a slice.
        aspect: Distance between rows over that between columns.
        slices: In [-1, 1], on disk.
        blank: The volume without its voxels, for files in its geometry.
        orientation: How it is displayed.
    """

    source: Path
    upload: Path
    title: str
    others: tuple[str, ...]
    plane: Plane | None
    size: tuple[int, int]
    aspect: float
    slices: Float32[np.ndarray, "n h w"]
    blank: Volume
    orientation: Orientation

    @property
    def is_nifti(self) -> bool:
        """Whether the source is a NIfTI file, which can be sliced in any plane."""
        return self.source.is_file()

    def write_region(self, path: Path, index: int, region: Bool[np.ndarray, "h w"]) -> None:
        """Write a mask of one slice's region, 0 elsewhere, in the geometry of the volume."""
        mask = np.zeros(self.slices.shape, dtype=np.uint8)
        mask[index] = region
        array = np.ascontiguousarray(from_slices(mask, self.orientation))
        write_nifti(path, array, replace(self.blank, array=array.astype(np.float32)))


def open_upload(upload: Path, folder: Path, *, series: int = 0, plane: Plane | None = None) -> Study:
    """Take an upload into a session's folder, without its name, and open it.

    Args:
        upload: NIfTI file, or a zip with DICOM files or one NIfTI file.
        folder: New folder for the volume.
        series: Which DICOM series of a zip to open.
        plane: Slice orientation of a NIfTI volume.

    Raises:
        DataError: It cannot be read, or is larger than a studio takes.
    """
    folder.mkdir(parents=True)
    if not zipfile.is_zipfile(upload):
        source = folder / "volume.nii.gz"
        source.hardlink_to(upload)  # equal uploads of two pages are one file
    else:
        source = _unpacked(upload, folder / "unpacked")
    return reopen(source, folder, series=series, plane=plane)


def reopen(upload: Path, folder: Path, *, series: int = 0, plane: Plane | None = None) -> Study:
    """Open what `open_upload` took, in another plane or another of its series."""
    source = upload
    titles: tuple[str, ...] = ()
    if upload.is_dir():
        found = find_dicom_series(upload, limits=LIMITS)
        if not found:
            raise DataError("the upload: holds no DICOM slices; zip the folder of one series")
        titles = tuple(item.label for item in found) if len(found) > 1 else ()
        chosen = found[min(series, len(found) - 1)]
        if titles:  # a command reads all series of a folder
            source = folder / f"series-{series}"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            for file in chosen.files:
                (source / file.name).hardlink_to(file)
        volume = read_dicom_series(chosen, limits=LIMITS)
    else:
        volume = read_nifti(upload, limits=LIMITS)
    stack = Stack.of(volume, plane)
    count, rows, columns = stack.slices.shape
    spacing = " × ".join(f"{side:.3g}" for side in volume.spacing)
    path = folder / f"slices-{uuid.uuid4().hex}.npy"  # an older one may still be mapped
    for old in folder.glob("slices-*.npy"):
        old.unlink()
    np.save(path, stack.slices)
    nothing = np.broadcast_to(np.zeros(1, dtype=np.float32), volume.array.shape)
    return Study(
        source=source,
        upload=upload,
        title=f"{count} {plane_of(volume, stack.orientation)} slice{'s' * (count != 1)} of {rows} × "
        f"{columns}, voxels of {spacing} mm",
        others=titles,
        plane=plane,
        size=stack.size,
        aspect=stack.aspect,
        slices=np.load(path, mmap_mode="r"),
        blank=replace(volume, array=nothing),
        orientation=stack.orientation,
    )


def _unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a zip under new names, within limits; return its one NIfTI file, or the folder of the others."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if _wanted(entry)]
            if len(entries) > MAX_ENTRIES:
                raise DataError(f"the upload: holds {len(entries)} files, wanted at most {MAX_ENTRIES}")
            left = LIMITS.allowance(archive.stat().st_size)
            nifti = [entry for entry in entries if entry.filename.lower().endswith((".nii", ".nii.gz"))]
            if nifti:
                if len(nifti) > 1:
                    raise DataError(
                        f"the upload: holds {len(nifti)} NIfTI files, wanted one; upload it alone"
                    )
                _unpack(file, nifti[0], folder.parent / "volume.nii.gz", left)
                return folder.parent / "volume.nii.gz"
            for number, entry in enumerate(sorted(entries, key=lambda entry: entry.filename)):
                ending = ".dcm" if entry.filename.lower().endswith(".dcm") else ""
                left -= _unpack(file, entry, folder / f"{number:04}{ending}", left)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the upload: its zip is damaged or encrypted; zip the folder again") from error
    return folder


def _wanted(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry is a plain file that is not hidden."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    parts = entry.filename.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not entry.is_dir() and kind in (0, stat.S_IFREG) and not hidden


def _unpack(file: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int) -> int:
    """Write one entry to a path; return its size."""
    size = 0
    with file.open(entry) as packed, path.open("wb") as unpacked:
        while chunk := packed.read(CHUNK):
            size += len(chunk)
            if size > left:
                raise DataError(
                    "the upload: unpacks to more than a studio takes; use the command line, or upload less"
                )
            unpacked.write(chunk)
    return size

"""Find the files below a folder, with the same rules for every command. Opens no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slicebook.errors import DataError

_ARCHIVE_COPIES = "__MACOSX"  # the folder in which a Mac's zip keeps its AppleDouble files
_SHOWN = 3
_NIFTI = (".nii", ".nii.gz")
_ITK = (".mha", ".mhd", ".nrrd")
_PICTURES = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class DiscoveredFiles:
    """The files below a folder, and what was passed over. Each tuple is sorted.

    Attributes:
        folder: The folder that was searched.
        files: Regular files, and links to regular files.
        hidden: Files and folders whose name begins with a dot (AppleDouble `._*` among them) and `__MACOSX`
            folders; nothing inside a hidden folder is listed.
        broken_links: Links whose target does not exist.
        linked_folders: Links to folders. They are not followed: a target may contain the link, or be in the
            folder already.
    """

    folder: Path
    files: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    broken_links: tuple[Path, ...] = ()
    linked_folders: tuple[Path, ...] = ()

    @property
    def nifti(self) -> tuple[Path, ...]:
        """Files named .nii or .nii.gz, in upper or lower case."""
        return tuple(path for path in self.files if is_nifti_name(path))

    @property
    def itk(self) -> tuple[Path, ...]:
        """Files named .mha, .mhd or .nrrd."""
        return tuple(path for path in self.files if is_itk_name(path))

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Files named .png, .tif or .tiff."""
        return tuple(path for path in self.files if is_picture_name(path))

    @property
    def volumes(self) -> tuple[Path, ...]:
        """Files of all formats that are recognised by name."""
        return tuple(path for path in self.files if is_volume_name(path))

    @property
    def others(self) -> tuple[Path, ...]:
        """Files of every other name; DICOM is recognised by content."""
        return tuple(path for path in self.files if not is_volume_name(path))

    def passed_over(self) -> tuple[str, ...]:
        """Return one line for each kind of entry that was passed over, with the first names and a count."""
        lines = []
        if self.broken_links:
            total = len(self.files) + len(self.broken_links)
            lines.append(
                f"{len(self.broken_links)} of {total} files are links to nothing: "
                f"{self._shown(self.broken_links)}; fetch them first (datalad get, git annex get)"
            )
        if self.linked_folders:
            lines.append(
                f"{len(self.linked_folders)} linked folders were not entered: "
                f"{self._shown(self.linked_folders)}; give the folder itself, or copy it here"
            )
        if self.hidden:
            lines.append(
                f"{len(self.hidden)} hidden files or folders were passed over: {self._shown(self.hidden)}"
            )
        return tuple(lines)

    def _shown(self, paths: Sequence[Path]) -> str:
        return first_names([path.relative_to(self.folder).as_posix() for path in paths])


def find_files(folder: Path | str) -> DiscoveredFiles:
    """List the files below a folder, however deep. Sorted by path, so the same folder gives the same order.

    Raises:
        DataError: The folder, or one below it, does not exist or cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; give the folder that holds the volumes")
    files: list[Path] = []
    hidden: list[Path] = []
    broken: list[Path] = []
    linked: list[Path] = []
    for path in _walk(folder, hidden):
        try:
            mode = path.stat().st_mode
        except OSError:  # no target, or a circular link
            broken.append(path)
            continue
        if stat.S_ISDIR(mode):
            linked.append(path)
        elif stat.S_ISREG(mode):  # opening a pipe or a device could block
            files.append(path)
    return DiscoveredFiles(folder, *(tuple(sorted(paths)) for paths in (files, hidden, broken, linked)))


def is_nifti_name(path: Path | str) -> bool:
    """Return whether a name ends in .nii or .nii.gz, in upper or lower case."""
    return str(path).lower().endswith(_NIFTI)


def is_itk_name(path: Path | str) -> bool:
    """Return whether a name ends in .mha, .mhd or .nrrd, in upper or lower case."""
    return str(path).lower().endswith(_ITK)


def is_picture_name(path: Path | str) -> bool:
    """Return whether a name ends in .png, .tif or .tiff, in upper or lower case."""
    return str(path).lower().endswith(_PICTURES)


def is_volume_name(path: Path | str) -> bool:
    """Return whether a name is that of a NIfTI, ITK or picture file."""
    return str(path).lower().endswith((*_NIFTI, *_ITK, *_PICTURES))


def volume_stem(path: Path) -> str:
    """Return the name of a file without the ending of its format."""
    if is_nifti_name(path):
        return nifti_stem(path)
    return path.stem if is_volume_name(path) else path.name


def nifti_stem(path: Path) -> str:
    """Return the name of a file without .nii or .nii.gz, in upper or lower case."""
    name = path.name
    for ending in (".gz", ".nii"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def first_names(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _walk(folder: Path, hidden: list[Path]) -> Iterator[Path]:
    """Yield files and links, including links to folders; append hidden entries to `hidden`."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check permissions")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=False):
        entered = []
        for name in (*folders, *names):
            path = Path(parent, name)
            if name.startswith(".") or name == _ARCHIVE_COPIES:
                hidden.append(path)
            elif name in folders and not path.is_symlink():
                entered.append(name)
            else:
                yield path
        folders[:] = entered

"""Atomic writes: if a command is killed or the disk is full, existing files and folders are unchanged."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from slicebook.errors import DataError

PARTIAL = ".partial"
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_KEPT_NAME = 32  # characters of the name kept in that of the temporary file, which must not get too long
_UNFINISHED = re.compile(rf"\..*\.[0-9a-f]{{12}}{re.escape(PARTIAL)}")  # the names that `replacing` gives


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file; its folder is created if missing.

    Raises:
        DataError: The file cannot be written; an older file is unchanged.
    """
    with replacing(path, size=len(content)) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Bytes of file names that are not UTF-8 are written as escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows with a header as CSV, atomically.

    Args:
        path: The file.
        rows: A missing cell is written empty.
        columns: Column order; that of the first row by default.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def synchronise(file: BinaryIO) -> None:
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def append_lines(path: str | Path, lines: Sequence[str], *, after: int | None = None) -> None:
    """Append lines to a file, on the disk when the call returns; the file is created if missing.

    A kill may leave a part of a line without its end, which the reader must leave out.

    Args:
        path: The file.
        lines: Without their ends.
        after: Bytes of the file that are kept; all by default.

    Raises:
        DataError: The lines cannot be written; the file has none of them.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    with explaining_failure(path, len(content)), Path(path).open("ab") as file:
        start = file.seek(0, os.SEEK_END) if after is None else file.truncate(after)
        try:
            file.write(content)
            synchronise(file)
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of commands that were killed while they wrote below a folder.

    No other command may write there meanwhile.
    """
    for path in folder.rglob(f".*{PARTIAL}"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def explaining_failure(path: str | Path, size: int | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `DataError` that names the file and the bytes it needs."""
    try:
        yield
    except OSError as error:
        wanted = "" if size is None else f"; {size:,} bytes wanted"
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}{wanted}); {_remedy(error, Path(path))}"
        ) from error


def _remedy(error: OSError, path: Path) -> str:
    """Return what to do about an error of writing."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            return f"{free:,} bytes are free in {folder}: free some there, or choose another folder"
    if error.errno in READ_ONLY:
        return f"make {folder} writable, or choose another folder"
    return "check the folder and its free space, or choose another"


def check_writable(folder: Path) -> None:
    """Raise `DataError` if no file can be created in a folder, before a long work is done in vain."""
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder}: is read-only; make it writable, or choose another folder")


@contextmanager
def replacing(
    path: str | Path, *, size: int | None = None, previous: str | Path | None = None
) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder, which replaces `path` at the end.

    Args:
        path: The file; its folder is created if missing.
        size: Bytes that will be written, for the message.
        previous: New name of the file that is replaced, which is otherwise deleted.

    Raises:
        DataError: The file cannot be written; an older file is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:_KEPT_NAME]}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    with explaining_failure(path, size):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb+") as file:
                synchronise(file)
            if previous is not None:
                os.replace(path, previous)
            os.replace(partial, path)
        finally:  # before the free space is told
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def move_files(partial: Path, folder: Path) -> None:
    """Move all files below a finished folder to the same places below another, and remove what is left.

    Args:
        partial: The finished folder, on the same file system.
        folder: Created if missing; files of the same names are replaced.

    Raises:
        DataError: A file cannot be written.
    """
    with explaining_failure(folder):
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            place = folder / path.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        shutil.rmtree(partial)


def refuse_full(path: str | Path) -> None:
    """Raise `DataError` if a folder to be made has content, before a long work is done in vain."""
    place = Path(path)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"{path}: is not empty; choose another folder")


@contextmanager
def replacing_folder(path: str | Path, *, replace_content: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which replaces it at the end.

    Args:
        path: A missing or empty folder. A link to an empty folder stays a link.
        replace_content: Whether a folder with content may be replaced, once the new one is complete.

    Raises:
        DataError: The folder cannot be written, or another command wrote to it; `path` is unchanged.
    """
    place = Path(path).resolve()
    partial = place.with_name(f".{place.name[:_KEPT_NAME]}{PARTIAL}")
    try:
        with explaining_failure(path):
            # Remove the remains of a killed command. A running one detects the new inode and stops.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            made = partial.stat().st_ino
            yield partial
            if not partial.is_dir() or partial.stat().st_ino != made:
                raise DataError(
                    f"{path}: another command writes there at the same time; run one after the other"
                )
            put_in_place(partial, place, replace_content=replace_content)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_files(partial: Path, folder: Path, names: Collection[str], *, last: str) -> None:
    """Replace files of a folder by the finished ones of another, which is left empty.

    Args:
        partial: The finished files, on the same file system.
        folder: Its other files stay.
        names: Files that may be written. An older one of these that is not written again is removed.
        last: The file that marks the set as complete: removed first, written last.

    Raises:
        OSError: A file cannot be replaced.
    """
    (folder / last).unlink(missing_ok=True)
    written = sorted(path.name for path in partial.iterdir())
    for name in sorted(written, key=last.__eq__):
        os.replace(partial / name, folder / name)
    for name in set(names) - set(written):
        (folder / name).unlink(missing_ok=True)


def put_in_place(partial: Path, place: Path, *, replace_content: bool = False) -> None:
    """Give a finished folder its final name.

    Args:
        partial: The finished folder, on the same file system.
        place: The final name: missing, an empty folder, or, with `replace_content`, any folder.
        replace_content: Whether a folder with content is replaced; it is kept until the new one is there.

    Raises:
        OSError: The folder is not empty or cannot be written; `place` is unchanged.
    """
    retired = partial.with_suffix(".old")
    if place.is_dir() and replace_content and any(place.iterdir()):
        shutil.rmtree(retired, ignore_errors=True)
        place.rename(retired)
        try:
            partial.rename(place)
        except OSError:
            retired.rename(place)
            raise
        shutil.rmtree(retired, ignore_errors=True)
        return
    if place.is_dir():
        place.rmdir()  # fails if something was put there meanwhile
    partial.rename(place)

"""Files and folders written whole or not at all: a kill or a full disk leaves what was there before."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slicebook.errors import DataError

PARTIAL = ".partial"
_KEPT_NAME = 32  # characters of a file's name in that of its unfinished form: a long name must not grow


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file; its folder is made where it is missing.

    Raises:
        DataError: The folder or the disk does not take it; an older file is as it was.
    """
    with replacing(path, size=len(content)) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as CSV under a line of their names, as `write_bytes` does.

    Args:
        path: The file.
        rows: A cell that a row lacks stays empty.
        columns: Their order; as in the first row by default.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextmanager
def explaining_failure(path: str | Path, size: int | None = None) -> Iterator[None]:
    """Turn a failure of the disk into a `DataError` that names the file and the bytes that it needs."""
    try:
        yield
    except OSError as error:
        wanted = "" if size is None else f"; {size:,} bytes wanted"
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}{wanted}); "
            "check the folder and its free space, or choose another"
        ) from error


@contextmanager
def replacing(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield the name of a new file in the same folder, which takes the place of `path` at the end.

    Args:
        path: The file; its folder is made where it is missing.
        size: Bytes that will be written, for the message.

    Raises:
        DataError: The folder or the disk does not take it; an older file is as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:_KEPT_NAME]}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with explaining_failure(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, *, replace_content: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path`, which takes its place at the end.

    Args:
        path: The folder: missing or empty. A link to an empty folder stays a link.
        replace_content: Whether a folder with content is replaced; it is kept until the new one is there.

    Raises:
        DataError: The disk does not take it, or another command wrote there meanwhile; `path` is as it was.
    """
    place = Path(path).resolve()
    partial = place.with_name(f".{place.name[:_KEPT_NAME]}{PARTIAL}")
    try:
        with explaining_failure(path):
            # Remove what a killed command left. A command that is still running notices its folder is gone.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            made = partial.stat().st_ino
            yield partial
            if not partial.is_dir() or partial.stat().st_ino != made:
                raise DataError(
                    f"{path}: another command writes there at the same time; run one after the other"
                )
            _put_in_place(partial, place, replace_content)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing_files(
    folder: Path, names: Collection[str], *, last: str, partial: str = PARTIAL
) -> Iterator[Path]:
    """Yield a folder to write files into, which take the places of older ones in `folder` at the end.

    Args:
        folder: Made where it is missing; it keeps its other files.
        names: What may be written. Of these, an older file that is not written anew is removed.
        last: The file that says that all others are there: removed first, written last.
        partial: Name of the unfinished folder inside `folder`.

    Raises:
        DataError: The disk does not take it.
    """
    new, unfinished = not folder.exists(), folder / partial
    try:
        with explaining_failure(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            yield unfinished
            (folder / last).unlink(missing_ok=True)
            written = sorted(path.name for path in unfinished.iterdir())
            for name in sorted(written, key=last.__eq__):
                os.replace(unfinished / name, folder / name)
            for name in set(names) - set(written):
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _put_in_place(partial: Path, place: Path, replace_content: bool) -> None:
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
        place.rmdir()  # refuses what was put there meanwhile
    partial.rename(place)

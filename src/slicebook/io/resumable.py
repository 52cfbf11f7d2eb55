"""Long work that resumes: what is done is kept on disk, and the same command goes on after it.

A `Journal` is a file with the request of the work, which is all that its results depend on, and one line for
each unit that is done. `resuming_folder` builds a folder unit by unit in a partial folder beside it, which
takes its name at the end. `locked` keeps a second command away.

    with resuming_folder(out, request, what="samples") as work:
        for name in names:
            if name not in work.journal:
                write(work.content / name)
                work.journal.add(name)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.errors import ConfigError, DataError
from slicebook.io.atomic import (
    append_lines,
    explaining_failure,
    put_in_place,
    remove_unfinished,
    replace_files,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # Windows has no fcntl

JOURNAL_NAME, LOCK_NAME = "journal.jsonl", ".lock"
_CONTENT = "set"  # the folder to be, inside the partial folder
_SUFFIX = ".partial"
_LONGEST_NAME = 255  # bytes, of common file systems
_CHUNK = 1 << 20


class Journal:
    """The units of a long work that are done, in a file that begins with the request.

    Args:
        path: The file; its folder exists.
        request: All that the results depend on, as JSON values. Units of another request are not read.

    Attributes:
        units: The result of each unit that is done, as JSON values, in the order in which they were added.
        differences: What differs from the request of the units found in the file; empty if nothing does.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path, self.request = path, _plain(request)
        before, units, length = _read(path)
        self.differences = _differences(before, self.request) if units else []
        self.units: dict[str, Any] = {} if self.differences else units
        whole = length > 0 and length == path.stat().st_size
        # Bytes that are kept when a line is appended; None for all, which other commands may have appended.
        self._kept: int | None = 0 if before != self.request else None if whole else length

    def add(self, unit: str, result: Any = None) -> None:
        """Record that a unit is done, after all its files are written; a later record replaces an earlier."""
        lines = [{"request": self.request}] if self._kept == 0 else []
        lines.append({"unit": unit, "result": _plain(result)})
        append_lines(self.path, [json.dumps(line) for line in lines], after=self._kept)
        self.units[unit], self._kept = _plain(result), None

    def clear(self) -> None:
        """Forget all units."""
        self.units, self._kept = {}, 0

    def __contains__(self, unit: str) -> bool:
        return unit in self.units


@dataclass(frozen=True)
class PartialFolder:
    """A folder that is being built; see `resuming_folder`.

    Attributes:
        content: Gets the final name at the end.
        journal: The units that are done.
    """

    content: Path
    journal: Journal

    @property
    def path(self) -> Path:
        """The folder that holds both."""
        return self.content.parent


@contextmanager
def resuming_folder(
    out: str | Path,
    request: Mapping[str, Any],
    *,
    what: str,
    restart: bool = False,
    replace_content: bool = False,
) -> Iterator[PartialFolder]:
    """Yield a partial folder beside `out`, new or as an interrupted command left it, which becomes `out`.

    If the block raises, the partial folder is kept for the next command, unless no unit is done.

    Args:
        out: A missing or empty folder. A link to an empty folder stays a link.
        request: All that the content depends on, as JSON values.
        what: What the units are, in the plural, for messages.
        restart: Whether units of another request are removed; by default they are refused.
        replace_content: Whether a folder with content may be replaced, once the new one is complete.

    Raises:
        ConfigError: The partial folder has units of another request, or another command writes there.
        DataError: The partial folder is something else, or the folder cannot be written.
    """
    target = Path(out).resolve()  # `.` has no name
    path = partial_path(target)
    if path.exists() and not _is_partial(path):
        raise DataError(
            f"{path}: is not empty, and is needed for unfinished {what}; move it away or choose another --out"
        )
    missing = [folder for folder in path.parents if not folder.exists()]
    with explaining_failure(path):
        path.mkdir(parents=True, exist_ok=True)
    with _removing_empty(missing), _work_in(path, request) as work:
        if work.journal.differences and not restart:
            raise ConfigError(
                f"{path}: holds unfinished {what} of other settings ({'; '.join(work.journal.differences)}); "
                "repeat that command, choose another --out, or remove this folder"
            )
        with _keeping_what_is_done(work):
            yield work
            with explaining_failure(out):
                put_in_place(work.content, target, replace_content=replace_content)
            work.journal.clear()


@contextmanager
def _removing_empty(folders: Sequence[Path]) -> Iterator[None]:
    """Remove folders that were made for work of which nothing is kept, the innermost first."""
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty ends it
            for folder in folders:
                folder.rmdir()


@contextmanager
def resuming_files(
    folder: Path, request: Mapping[str, Any], *, names: Collection[str], last: str, partial: str
) -> Iterator[PartialFolder]:
    """Yield a partial folder, as `resuming_folder` does, whose files replace those of `folder` at the end.

    Units of another request are removed.

    Args:
        folder: Created if missing; its other files stay.
        request: All that the files depend on, as JSON values.
        names: Files that may be written. An older one of these that is not written again is removed.
        last: The file that marks the set as complete: removed first, written last.
        partial: Name of the partial folder inside `folder`.

    Raises:
        ConfigError: Another command writes there.
        DataError: A file cannot be written.
    """
    new, path = not folder.exists(), folder / partial
    try:
        with explaining_failure(path):
            path.mkdir(parents=True, exist_ok=True)
        with _work_in(path, request) as work, _keeping_what_is_done(work):
            yield work
            with explaining_failure(folder):
                replace_files(work.content, folder, names, last=last)
            work.journal.clear()
    finally:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _work_in(path: Path, request: Mapping[str, Any]) -> Iterator[PartialFolder]:
    """Hold a partial folder."""
    with locked(path / LOCK_NAME, "another command"):
        yield PartialFolder(path / _CONTENT, Journal(path / JOURNAL_NAME, request))


@contextmanager
def _keeping_what_is_done(work: PartialFolder) -> Iterator[None]:
    """Start with the content of the units that are done; at the end, remove a folder without any."""
    if not work.content.is_dir():  # killed between the last rename and the removal of the journal
        work.journal.clear()
    if not work.journal.units:  # files of another request, or of a unit that was begun
        for item in work.path.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
    remove_unfinished(work.path)
    try:
        with explaining_failure(work.path):
            work.content.mkdir(exist_ok=True)
        yield
    finally:
        if not work.journal.units:
            shutil.rmtree(work.path, ignore_errors=True)


def partial_path(out: Path) -> Path:
    """Return the folder in which `resuming_folder` builds a folder."""
    target = out.resolve()
    name = f"{target.name}{_SUFFIX}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}{_SUFFIX}"
    return target.with_name(name)


def unfinished_request(out: Path) -> dict[str, Any]:
    """Return the request of the command that was interrupted while it built a folder; empty if none was."""
    return _read(partial_path(out) / JOURNAL_NAME)[0]


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the content of files, in the given order.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    one.update(chunk)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path}: cannot be read ({reason}); check path and permissions") from error
        digest.update(one.digest())
    return digest.hexdigest()


@contextmanager
def locked(path: Path, writer: str) -> Iterator[bool]:
    """Hold a lock file until the block ends, and yield whether there is a lock.

    The operating system releases the lock when the process ends, so nothing needs to be removed by hand.
    There is none where the file system is read-only or does not support it.

    Args:
        path: The lock file, in the folder that is written to.
        writer: Who may hold it, for the message.

    Raises:
        ConfigError: Another process holds it.
    """
    handle = None if fcntl is None else _lock(path, writer)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_UN)  # a loading process may have a copy of the handle
            os.close(handle)


def _lock(path: Path, writer: str) -> int | None:
    """Return the handle of a locked file, or None where there are no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "not named yet"
                os.close(handle)
                raise ConfigError(
                    f"{path.parent}: {writer} writes here ({holder}); wait until it has ended, stop it, or "
                    "use another --out"
                ) from None
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                break
            os.close(handle)  # its last holder removed it meanwhile
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except ConfigError:
        raise
    except OSError:
        return None
    return handle


def _is_partial(path: Path) -> bool:
    """Return whether a folder was made here: empty, or with nothing but what is put there."""
    known = {JOURNAL_NAME, LOCK_NAME, _CONTENT, f"{_CONTENT}.old"}
    return path.is_dir() and all(item.name in known or item.name[0] == "." for item in path.iterdir())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the request and the units of a journal up to the first torn line, and the bytes up to there.

    Without a journal, the request is empty.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return {}, {}, 0
    rows = list(itertools.takewhile(bool, map(_row, lines)))
    if not rows or not isinstance(rows[0].get("request"), dict):
        return {}, {}, 0
    units = {str(row["unit"]): row.get("result") for row in rows[1:] if "unit" in row}
    return rows[0]["request"], units, sum(map(len, lines[: len(rows)]))


def _row(line: bytes) -> dict[str, Any]:
    """Return the content of a line; empty if it is torn."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {before.get(key)} then, {now.get(key)} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: with lists in place of tuples."""
    return json.loads(json.dumps(value, allow_nan=False))

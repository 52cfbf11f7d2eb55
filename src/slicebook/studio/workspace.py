"""Temporary folders of the studio: one per open page, removed when the page is closed or falls idle."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from slicebook.errors import DataError, SlicebookError
from slicebook.studio.job import Job
from slicebook.studio.study import Study

MAX_SESSIONS = 32  # the one idle for longest is removed to make room
UPLOAD_SECONDS = 900  # age from which an upload is removed; a page takes it before


class BusyError(SlicebookError, RuntimeError):
    """The page has a computation running already."""


class Session:
    """What one open page has: a folder, a volume, files to download and at most one running computation.

    Attributes:
        folder: Temporary folder.
        study: The volume that is open, if any.
        results: Number of the next folder of results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study: Study | None = None
        self._results = 0
        self._job: Job | None = None
        self._lock = threading.Lock()

    def new_folder(self, kind: str) -> Path:
        """Return a new path for results, and remove earlier results of the kind."""
        for old in self.folder.glob(f"{kind}-*"):
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)
        self._results += 1
        return self.folder / f"{kind}-{self._results}"

    def start(self, job: Job) -> None:
        """Take a computation as the running one.

        Raises:
            BusyError: Another one runs.
        """
        with self._lock:
            if self._job is not None and not self._job.ended:
                raise BusyError("a computation of this page is still running; stop it or wait for it")
            self._job = job

    def stop(self) -> None:
        """Stop the running computation, if any, at its next step."""
        with self._lock:
            if self._job is not None:
                self._job.stop()


class Workspace:
    """All temporary files of one studio.

    Attributes:
        root: Folder that only this user can enter.
        uploads: Where the server writes uploads before a page takes them.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slicebook-studio-")).resolve()
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._downloads: dict[str, Path] = {}
        self._lock = threading.Lock()

    def session(self, key: str) -> Session:
        """Return the session of a page, made at its first request."""
        with self._lock:
            if key not in self._sessions:
                folder = self.root / f"session-{secrets.token_hex(8)}"
                folder.mkdir()
                self._sessions[key] = Session(folder)
            self._sessions.move_to_end(key)
            leaving = [
                self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - MAX_SESSIONS)
            ]
            session = self._sessions[key]
        for old in leaving:
            self._remove(old)
        return session

    def close_session(self, key: str) -> None:
        """Stop what a page computes and remove its files."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            self._remove(session)

    def close(self) -> None:
        """Stop all computations and remove all files."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def uploaded(self, path: str) -> Path:
        """Return the path of an upload.

        Raises:
            DataError: It is no file that was uploaded, whatever the page says.
        """
        file = Path(path).resolve()
        if not file.is_relative_to(self.uploads) or not file.is_file():
            raise DataError("The upload is no longer there: choose the file again.")
        return file

    def offer(self, file: Path) -> str:
        """Return a secret token under which a file can be downloaded while it exists."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._downloads = {key: path for key, path in self._downloads.items() if path.is_file()}
            self._downloads[token] = file
        return token

    def offered(self, token: str) -> Path | None:
        """Return the file of a token, if it still exists."""
        path = self._downloads.get(token)
        return path if path is not None and path.is_file() else None

    def _remove(self, session: Session) -> None:
        session.stop()
        shutil.rmtree(session.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove old uploads; what a page took of them is a file of its own."""
        oldest = time.time() - UPLOAD_SECONDS
        for path in list(self.uploads.iterdir()):
            if path.lstat().st_mtime < oldest:
                _removed(path)


def _removed(path: Path) -> None:
    remove: Callable[[Path], object] = shutil.rmtree if path.is_dir() else Path.unlink
    try:
        remove(path)
    except OSError:  # taken or removed by another thread meanwhile
        return

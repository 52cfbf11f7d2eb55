"""Convert a folder of volumes into a prepared folder (described in `manifest.py`).

One volume per process is in memory. Until the folder is complete, it is in a partial folder beside it, from
which the same command goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from slicebook.data.content import PreparedContent
from slicebook.data.convert import ConvertedVolume, convert
from slicebook.data.layouts.registry import find_sources, refuse_guesses, shared_identifier_advice
from slicebook.data.layouts.sources import EVERY_FILE, FolderScan, Source, SourceOptions, group_of
from slicebook.data.manifest import (
    IMAGES_NAME,
    LABELS_NAME,
    SCHEMA_VERSION,
    DatasetInfo,
    write_info,
    write_manifest,
    write_quarantine,
)
from slicebook.data.splits import DEFAULT_FRACTIONS, assign_splits
from slicebook.data.worker_pool import map_in_order
from slicebook.errors import ConfigError, DataError
from slicebook.io.atomic import explaining_failure, synchronise
from slicebook.io.resumable import PartialFolder, resuming_folder
from slicebook.progress import Progress
from slicebook.version import __version__

KEEP_SECONDS = 5.0  # between two records of the volumes that are done, for which the disk is waited
_CHUNK = 1 << 20  # bytes copied at a time


@dataclass(frozen=True)
class PrepareOptions:
    """How volumes are prepared.

    Attributes:
        spacing: Pixel size in mm to resample slices to. Default: native pixels.
        size: Rows and columns to crop or pad slices to, around their centre. Default: no change.
        percentiles: Percentiles of a volume's intensities that are mapped to -1 and 1.
        fractions: Fraction of the patients in train, validation and test; `(0, 0, 1)` puts all in test. By
            default the layout's own split if it has one, else 0.7, 0.15 and 0.15.
        seed: Seed of the split.
        class_regex: Regular expression, searched in a file's path below the folder. Its group is the class of
            the slices. The class is written to the prepared folder and must not identify a patient.
    """

    spacing: float | None = None
    size: tuple[int, int] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    fractions: tuple[float, float, float] | None = None
    seed: int = 42
    class_regex: str | None = None

    def __post_init__(self) -> None:
        if self.class_regex is not None:
            group_of(self.class_regex, "--class-regex")
        if self.spacing is not None and not 0 < self.spacing < float("inf"):
            raise ConfigError(f"--spacing {self.spacing}: wanted millimetres above 0")
        if self.size is not None and min(self.size) < 1:
            raise ConfigError(f"--size {self.size}: wanted rows and columns of at least 1")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"percentiles {low} and {high}: wanted 0 <= low < high <= 100")
        shares = self.fractions or DEFAULT_FRACTIONS
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"--fractions {self.fractions}: wanted three shares, none below 0, that sum to 1"
            )


NATIVE = PrepareOptions()
"""Native pixels and the default split."""


@dataclass(frozen=True)
class PreparedSummary:
    """What `prepare` did.

    `quarantined` (file, reason), `unmatched` and `notes` contain file names; do not share them.
    """

    folder: Path
    info: DatasetInfo
    quarantined: tuple[tuple[str, str], ...]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...] = ()


def prepare(
    data: str | Path,
    out: str | Path,
    source: SourceOptions = EVERY_FILE,
    options: PrepareOptions = NATIVE,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> PreparedSummary:
    """Read the volumes below `data` and write the prepared folder `out`.

    Patients get numbered pseudonyms in the order of their raw identifiers. If two files of a patient have the
    same voxels, the second is left out and counted. The same voxels in files of two patients are an error.

    If the command is interrupted, the same command on the same files goes on where it was.

    Args:
        data: Folder of volumes.
        out: New or empty folder, or a prepared one, which is replaced when the new one is complete.
        source: Which files belong to which patient.
        options: How volumes are prepared.
        workers: Number of processes that read volumes; 0 reads in this process. The result is the same.
        progress: Called with the number of volumes done and in total, before the work and after each volume.

    Raises:
        ConfigError: An option is invalid or does not apply to the layout.
        DataError: The data cannot be used; `out` is unchanged.
    """
    data, out = Path(data), Path(out).absolute()
    if out.exists() and not (out / "dataset.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not a prepared folder; choose a new or empty one")
    scan = find_sources(data, source)
    refuse_guesses(data, scan)
    splits = assign_splits(
        scan.patients,
        scan.given_splits,
        options.fractions,
        options.seed,
        advice=shared_identifier_advice(scan),
    )
    with resuming_folder(
        out,
        _request(data, scan, source, options),
        what="volumes",
        restart=True,
        replace_content=(out / "dataset.json").is_file(),
    ) as work:
        content = PreparedContent(data, scan, splits, options.class_regex)
        try:
            with _Writer(work, out, content, _conversion(out, source, options)) as writer:
                writer.add_all(workers, progress)
            with explaining_failure(out):
                info = _finish(work.content, content, options)
        except DataError as error:
            if error.__cause__ is None:  # of the data, so that the same command would fail again
                work.journal.clear()
            raise
    quarantined = tuple((str(bad.path), bad.reason) for bad in content.unreadable)
    return PreparedSummary(
        out, info, quarantined, tuple(str(path) for path in scan.unmatched), (*scan.notes, *content.notes())
    )


def _request(data: Path, scan: FolderScan, source: SourceOptions, options: PrepareOptions) -> dict[str, Any]:
    """Return all that the content depends on: the options, and names, sizes and times of the files."""
    files = hashlib.sha256()
    paths = {path for item in scan.sources for path in (*item.images, *item.labels) if path is not None}
    for path in sorted(paths):
        status = path.stat() if path.is_file() else None  # removed since it was listed: reported when read
        identity = (status.st_size, status.st_mtime_ns) if status else None
        files.update(os.fsencode(f"{path.relative_to(data)} {identity}\n"))
    return {
        "slicebook_version": __version__,
        "data": str(data.absolute()),
        "files": files.hexdigest(),
        "source": asdict(source),
        "options": asdict(options),
    }


def _finish(folder: Path, content: PreparedContent, options: PrepareOptions) -> DatasetInfo:
    """Write the manifest, the quarantine and `dataset.json`.

    Raises:
        DataError: A split has no slice.
    """
    scan = content.scan
    own_split = any(source.split for source in scan.sources)
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        slicebook_version=__version__,
        layout=scan.layout,
        plane=next(iter(content.planes)) if len(content.planes) == 1 else None,
        spacing=options.spacing,
        size=options.size,
        percentiles=options.percentiles,
        seed=options.seed,
        fractions=None if own_split else options.fractions or DEFAULT_FRACTIONS,
        split_hash=content.split_hash(),
        counts=content.counts(),
        label_values=tuple(sorted(content.label_values)),
        label_names={v: n for v, n in scan.label_names.items() if v in content.label_values},
        quarantined=len(content.unreadable),
        duplicates=content.duplicates,
    )
    if not content.label_pixels:
        (folder / LABELS_NAME).unlink()
    write_manifest(folder, content.records)
    write_quarantine(folder, content.unreadable)
    write_info(folder, info)
    return info


def _conversion(out: Path, source: SourceOptions, options: PrepareOptions) -> Callable[..., ConvertedVolume]:
    """Return the function that converts a numbered volume; another process can import it."""
    return partial(
        _convert_to_files,
        out=out,
        plane=source.plane,
        spacing=options.spacing,
        size=options.size,
        percentiles=options.percentiles,
    )


def _convert_to_files(item: tuple[int, Source], *, spools: Path, out: Path, **how: Any) -> ConvertedVolume:
    """Convert a volume into two files of its own, from which the writer appends it."""
    number, source = item
    with (
        explaining_failure(out / IMAGES_NAME),
        (spools / f"{number}.images").open("wb") as images,
        (spools / f"{number}.labels").open("wb") as labels,
    ):
        return convert(source, images, labels, **how)


class _Writer:
    """Appends volumes to the files of an unfinished prepared folder, and keeps track of those that are done.

    A unit of the journal is the volumes that were appended since the unit before it.
    """

    def __init__(
        self,
        work: PartialFolder,
        out: Path,
        content: PreparedContent,
        conversion: Callable[..., ConvertedVolume],
    ) -> None:
        self.work, self.out, self.content = work, out, content
        self.spools = work.path / ".volumes"
        self.convert = partial(conversion, spools=self.spools)
        self._pending: list[dict[str, Any]] = []
        self._kept_at = time.monotonic()

    def __enter__(self) -> _Writer:
        with explaining_failure(self.out):
            shutil.rmtree(self.spools, ignore_errors=True)
            self.spools.mkdir()
            self.images, self.labels = (
                (self.work.content / name).open("ab") for name in (IMAGES_NAME, LABELS_NAME)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in (self.images, self.labels):
            with contextlib.suppress(*() if kind is None else (OSError,)):  # a full disk fails again here
                file.close()
        shutil.rmtree(self.spools, ignore_errors=True)

    def add_all(self, workers: int, progress: Progress | None) -> None:
        """Append every volume that an interrupted command has not appended."""
        sources = self.content.scan.sources
        done = self._take_up(sources)
        if progress is not None:
            progress(done, len(sources))
        left = list(enumerate(sources))[done:]
        for item, converted in zip(left, map_in_order(self.convert, left, workers), strict=True):
            self._add(item, converted)
            if progress is not None:
                progress(item[0] + 1, len(sources))
        self._keep()

    def _take_up(self, sources: Sequence[Source]) -> int:
        """Take up the volumes that are done; return their number."""
        kept = [record for unit in self.work.journal.units.values() for record in unit]
        for source, record in zip(sources, kept, strict=False):
            converted = ConvertedVolume.from_json(record)
            self.content.copies(source, converted)
            self.content.add(source, converted)
        for file, size in ((self.images, 4 * self.content.pixels), (self.labels, self.content.label_pixels)):
            if file.seek(0, os.SEEK_END) < size:
                raise DataError(
                    f"{self.work.path}: is damaged ({Path(file.name).name} is too short); remove this folder "
                    "and repeat the command"
                )
            file.truncate(size)
            file.seek(size)
        return len(kept)

    def _add(self, item: tuple[int, Source], converted: ConvertedVolume) -> None:
        number, source = item
        copies = self.content.copies(source, converted)
        if copies and len(copies) < len(converted.readable):  # the intensity map is that of the others
            converted = self.convert(item, omitted=copies)
        elif copies:
            converted = converted.without_slices()
        if converted.written:
            for file, kind in ((self.images, "images"), (self.labels, "labels")):
                self._append(file, self.spools / f"{number}.{kind}")
        self.content.add(source, converted)
        for kind in ("images", "labels"):
            (self.spools / f"{number}.{kind}").unlink()
        self._pending.append(converted.to_json())
        if time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep()

    def _append(self, file: BinaryIO, spool: Path) -> None:
        with (
            explaining_failure(self.out / Path(file.name).name, file.tell() + spool.stat().st_size),
            spool.open("rb") as converted,
        ):
            shutil.copyfileobj(converted, file, _CHUNK)
            file.flush()

    def _keep(self) -> None:
        """Record the volumes since the last unit as done, once they are on the disk."""
        if not self._pending:
            return
        with explaining_failure(self.out):
            for file in (self.images, self.labels):
                synchronise(file)
        journal = self.work.journal
        journal.add(str(len(journal.units)), self._pending)
        journal.units = dict.fromkeys(journal.units)  # the results are in the file; a big study has many
        self._pending, self._kept_at = [], time.monotonic()

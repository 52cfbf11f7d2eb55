"""Convert a folder of volumes into a prepared folder (described in `manifest.py`).

One volume at a time is in memory. The folder gets its final name when it is complete.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from slicebook.data.findings import grouped
from slicebook.data.layouts.registry import (
    find_sources,
    patient_warnings,
    refuse_guesses,
    shared_identifier_advice,
)
from slicebook.data.layouts.sources import EVERY_FILE, FolderScan, Source, SourceOptions, Unreadable, group_of
from slicebook.data.manifest import (
    SCHEMA_VERSION,
    DatasetInfo,
    SliceRecord,
    SplitCounts,
    write_info,
    write_manifest,
    write_quarantine,
)
from slicebook.data.reader import Misfit, Part, count_files, read_parts
from slicebook.data.splits import DEFAULT_FRACTIONS, SPLITS, Split, assign_splits
from slicebook.data.transforms import IntensityMap, crop_or_pad, resample
from slicebook.errors import ConfigError, DataError
from slicebook.io.atomic import explaining_failure, replacing_folder
from slicebook.io.discovery import first_names
from slicebook.io.volume import Plane
from slicebook.version import __version__

MAX_UNREADABLE = 0.05  # fraction of files or series; a single unreadable one is always allowed


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
    progress: Callable[[int, int], None] | None = None,
) -> PreparedSummary:
    """Read the volumes below `data` and write the prepared folder `out`.

    Patients get numbered pseudonyms in the order of their raw identifiers. If two files of a patient have the
    same voxels, the second is left out and counted. The same voxels in files of two patients are an error.

    Args:
        data: Folder of volumes.
        out: New or empty folder, or a prepared one, which is replaced when the new one is complete.
        source: Which files belong to which patient.
        options: How volumes are prepared.
        progress: Called with the number of volumes done and in total.

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
    with (
        replacing_folder(out, replace_content=(out / "dataset.json").is_file()) as partial,
        _Writer(partial, out, data, scan, source.plane, options, splits) as writer,
    ):
        for done, volume in enumerate(scan.sources):
            writer.add(volume)
            if progress is not None:
                progress(done + 1, len(scan.sources))
        info = writer.finish()
    quarantined = tuple((str(bad.path), bad.reason) for bad in writer.unreadable)
    return PreparedSummary(
        out, info, quarantined, tuple(str(path) for path in scan.unmatched), (*scan.notes, *writer.notes())
    )


class _Writer:
    """Appends volumes to an unfinished prepared folder."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        data: Path,
        scan: FolderScan,
        plane: Plane | None,
        options: PrepareOptions,
        splits: dict[str, Split],
    ) -> None:
        self.folder, self.out, self.data, self.scan, self.plane = folder, out, data, scan, plane
        self.options, self.splits = options, splits
        self.pseudonyms = {raw: f"patient-{n:04}" for n, raw in enumerate(sorted(splits), start=1)}
        self.records: list[SliceRecord] = []
        self.unreadable: list[Unreadable] = []
        self.planes: set[Plane] = set()
        self.label_values: set[int] = set()
        self.voxels: dict[bytes, tuple[Source, Path]] = {}  # first source and file with these voxels
        self.duplicates = 0
        self.disagreeing: list[str] = []
        self.split_lines: list[str] = []
        self.quarantine(scan.unreadable)  # before files are opened, as it may raise
        self.images: BinaryIO = (folder / "images.f32").open("wb")
        self.labels: BinaryIO = (folder / "labels.u8").open("wb")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in (self.images, self.labels):
            with contextlib.suppress(*() if kind is None else (OSError,)):  # a full disk fails again here
                file.close()

    def _write(self, file: BinaryIO, content: bytes) -> int:
        """Append to a file and return where the content begins."""
        start = file.tell()
        with explaining_failure(self.out / Path(file.name).name, start + len(content)):
            file.write(content)
            file.flush()
        return start

    def quarantine(self, files: Iterable[Unreadable]) -> None:
        """Record unreadable files; raise `DataError` if there are too many."""
        self.unreadable += files
        series = [bad for bad in self.unreadable if bad.is_series]
        single = [bad for bad in self.unreadable if not bad.is_series]
        for bad, total, what in (
            (single, count_files(self.scan), "files"),
            (series, len(self.scan.sources), "series"),
        ):
            if len(bad) >= 2 and len(bad) > MAX_UNREADABLE * total:
                shown = "; ".join(grouped([unreadable.reason for unreadable in bad])[:5])
                raise DataError(
                    f"{len(bad)} of {total} {what} cannot be read, more than {MAX_UNREADABLE:.0%}: {shown}; "
                    "replace or remove them (slicebook check lists all)"
                )

    def add(self, source: Source) -> None:
        """Read a volume, map its intensities, and append its slices."""
        parts: list[Part] = []
        for part in read_parts(source, self.plane):
            if isinstance(part, Unreadable):
                self.quarantine([part])
            elif isinstance(part, Misfit):
                raise DataError(part.reason)
            elif self._is_new(source, part):
                parts.append(part)
        if not parts:
            return
        values = [part.images.ravel() for part in parts]
        mapping = IntensityMap.fit(
            values[0] if len(values) == 1 else np.concatenate(values), self.options.percentiles
        )
        patient, split = self.pseudonyms[source.patient], self.splits[source.patient]
        others = {record.volume for record in self.records if record.patient == patient}
        volume = f"{patient}/volume-{len(others) + 1:02}"
        last = (len(source.images) if source.is_stack else len(parts[0].images)) - 1
        for part in parts:
            self._append(part, patient, volume, split, mapping, last)
        voxels = hashlib.sha256(b"".join(part.digest for part in parts)).hexdigest()
        self.split_lines.append(f"{voxels} {split}")

    def _is_new(self, source: Source, part: Part) -> bool:
        first, path = self.voxels.setdefault(part.digest, (source, part.path))
        if part.blank or (
            first is source and path == part.path
        ):  # blank slices are equal without being copies
            return True
        if first.patient != source.patient:
            raise DataError(
                f"{part.path}: the same voxels as {path}, of another patient; splits could overlap; "
                "remove one of them, or give both to one patient by --patient-regex"
            )
        self.duplicates += 1
        return False

    def _append(
        self, part: Part, patient: str, volume: str, split: Split, mapping: IntensityMap, last: int
    ) -> None:
        self.planes.add(part.plane)
        if part.forms_disagree:
            self.disagreeing.append(str(part.path))
        if part.labels is not None:
            self.label_values.update(np.unique(part.labels).tolist())
        shape, row_mm, column_mm = _resampled_shape(part, self.options.spacing)
        named = self.options.class_regex and re.search(
            self.options.class_regex, str(part.path.relative_to(self.data))
        )
        for i, native in enumerate(part.images):
            image = mapping.forward(resample(native, shape))
            image = crop_or_pad(image, self.options.size or shape, fill=-1)
            offset = self._write(self.images, image.astype("<f4").tobytes()) // 4
            label_offset = -1
            if part.labels is not None:
                label = crop_or_pad(resample(part.labels[i], shape), self.options.size or shape, fill=0)
                label_offset = self._write(self.labels, label.tobytes())
            number = part.number + i
            record = SliceRecord(
                index=len(self.records),
                patient=patient,
                volume=volume,
                slice=number,
                position=number / last if last else 0.0,
                split=split,
                rows=image.shape[0],
                columns=image.shape[1],
                offset=offset,
                label_offset=label_offset,
                row_mm=row_mm,
                column_mm=column_mm,
                low=mapping.low,
                high=mapping.high,
                blank=bool(native.min() == native.max() or image.min() == image.max()),
                group=(named.group(1) or "") if named else "",
            )
            self.records.append(record)

    def finish(self) -> DatasetInfo:
        """Write the manifest, the quarantine and `dataset.json`."""
        counts: dict[Split, SplitCounts] = {split: self._count(split) for split in SPLITS}
        empty = [split for split in set(self.splits.values()) if not counts[split].slices]
        if empty:
            raise DataError(
                f"no readable slice is left in {', '.join(sorted(empty))}: {self.unreadable[0].reason}; "
                "replace the unreadable files"
            )
        if not self.labels.tell():
            (self.folder / "labels.u8").unlink()
        write_manifest(self.folder, self.records)
        write_quarantine(self.folder, self.unreadable)
        own_split = any(source.split for source in self.scan.sources)
        info = DatasetInfo(
            schema_version=SCHEMA_VERSION,
            slicebook_version=__version__,
            layout=self.scan.layout,
            plane=self.planes.pop() if len(self.planes) == 1 else None,
            spacing=self.options.spacing,
            size=self.options.size,
            percentiles=self.options.percentiles,
            seed=self.options.seed,
            fractions=None if own_split else self.options.fractions or DEFAULT_FRACTIONS,
            split_hash=hashlib.sha256("\n".join(sorted(self.split_lines)).encode()).hexdigest(),
            counts=counts,
            label_values=tuple(sorted(self.label_values)),
            label_names={v: n for v, n in self.scan.label_names.items() if v in self.label_values},
            quarantined=len(self.unreadable),
            duplicates=self.duplicates,
        )
        write_info(self.folder, info)
        return info

    def notes(self) -> tuple[str, ...]:
        """Return warnings about the data, one line each."""
        lines = list(patient_warnings(self.scan))
        kinds = {source.kind for source in self.scan.sources}
        if len(kinds) > 1:
            lines.append(
                f"series of {len(kinds)} kinds are taken; slicebook check lists them, --series chooses"
            )
        if self.disagreeing:
            lines.append(
                f"sform and qform of {len(self.disagreeing)} files disagree; the sform is used: "
                f"{first_names(self.disagreeing)}"
            )
        return tuple(lines)

    def _count(self, split: Split) -> SplitCounts:
        records = [record for record in self.records if record.split == split]
        return SplitCounts(
            patients=len({record.patient for record in records}),
            volumes=len({record.volume for record in records}),
            slices=len(records),
            blank=sum(record.blank for record in records),
        )


def _resampled_shape(part: Part, spacing: float | None) -> tuple[tuple[int, int], float, float]:
    """Return rows and columns at a spacing, and the exact spacing (row, column) after rounding them."""
    rows, columns = part.images.shape[1:]
    _, row_mm, column_mm = part.spacing
    if spacing is None:
        return (rows, columns), row_mm, column_mm
    new_rows, new_columns = (
        max(round(rows * row_mm / spacing), 1),
        max(round(columns * column_mm / spacing), 1),
    )
    return (new_rows, new_columns), rows * row_mm / new_rows, columns * column_mm / new_columns

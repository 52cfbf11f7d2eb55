"""What a prepared folder that is being written contains, besides the pixels."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from slicebook.data.convert import ConvertedPart, ConvertedVolume
from slicebook.data.findings import grouped
from slicebook.data.layouts.registry import patient_warnings
from slicebook.data.layouts.sources import FolderScan, Source, Unreadable
from slicebook.data.manifest import SliceRecord, SplitCounts
from slicebook.data.reader import Misfit, count_files
from slicebook.data.splits import SPLITS, Split
from slicebook.errors import DataError
from slicebook.io.discovery import first_names
from slicebook.io.volume import Plane

MAX_UNREADABLE = 0.05  # fraction of files or series; a single unreadable one is always allowed


class PreparedContent:
    """The records of the volumes added so far, and what was found in their files.

    Volumes are added in the order of the scan, so that the same folder gives the same content.

    Attributes:
        records: One per slice.
        unreadable: Files left out.
        planes: Planes of the volumes.
        label_values: All values in the masks.
        duplicates: Number of files left out because they have the voxels of another file of the patient.
        pixels, label_pixels: Number of elements of `images.f32` and `labels.u8`.

    Raises:
        DataError: Too many files of the scan are unreadable.
    """

    def __init__(
        self, data: Path, scan: FolderScan, splits: Mapping[str, Split], class_regex: str | None
    ) -> None:
        self.data, self.scan, self.splits, self.class_regex = data, scan, splits, class_regex
        self.records: list[SliceRecord] = []
        self.unreadable: list[Unreadable] = []
        self.planes: set[Plane] = set()
        self.label_values: set[int] = set()
        self.duplicates = self.pixels = self.label_pixels = 0
        self._pseudonyms = {raw: f"patient-{n:04}" for n, raw in enumerate(sorted(splits), start=1)}
        self._volumes: Counter[str] = Counter()  # per pseudonym
        self._voxels: dict[str, tuple[Source, Path]] = {}  # first source and file with these voxels
        self._files = count_files(scan)
        self._disagreeing: list[str] = []
        self._split_lines: list[str] = []
        self._quarantine(scan.unreadable)  # before files are opened, as it may raise

    def copies(self, source: Source, volume: ConvertedVolume) -> list[Path]:
        """Return the files of a volume whose voxels are those of another file, and note all of its files.

        Raises:
            DataError: A file cannot be used, too many are unreadable, or the other is of another patient.
        """
        found = []
        for part in volume.parts:
            if isinstance(part, Unreadable):
                self._quarantine([part])
            elif isinstance(part, Misfit):
                raise DataError(part.reason)
            elif not self._is_new(source, part):
                found.append(part.path)
        self.duplicates += len(found)
        return found

    def add(self, source: Source, volume: ConvertedVolume) -> None:
        """Add the slices of a volume that are written."""
        parts = volume.written
        if not parts:
            return
        patient = self._pseudonyms[source.patient]
        self._volumes[patient] += 1
        name = f"{patient}/volume-{self._volumes[patient]:02}"
        last = (len(source.images) if source.is_stack else parts[0].slices) - 1
        for part in parts:
            self.planes.add(part.plane)
            if part.forms_disagree:
                self._disagreeing.append(str(part.path))
            self._add_slices(part, volume, patient, name, self.splits[source.patient], last)
        self.label_values.update(volume.label_values)
        digests = b"".join(bytes.fromhex(part.digest) for part in parts)
        self._split_lines.append(f"{hashlib.sha256(digests).hexdigest()} {self.splits[source.patient]}")

    def _add_slices(
        self, part: ConvertedPart, volume: ConvertedVolume, patient: str, name: str, split: Split, last: int
    ) -> None:
        found = self.class_regex and re.search(self.class_regex, str(part.path.relative_to(self.data)))
        blank_slices = set(part.blank_slices)
        for i in range(part.slices):
            number = part.number + i
            record = SliceRecord(
                index=len(self.records),
                patient=patient,
                volume=name,
                slice=number,
                position=number / last if last else 0.0,
                split=split,
                rows=part.rows,
                columns=part.columns,
                offset=self.pixels,
                label_offset=self.label_pixels if part.labelled else -1,
                row_mm=part.row_mm,
                column_mm=part.column_mm,
                low=volume.low,
                high=volume.high,
                blank=i in blank_slices,
                group=(found.group(1) or "") if found else "",
            )
            self.records.append(record)
            self.pixels += part.rows * part.columns
            self.label_pixels += part.rows * part.columns * part.labelled

    def counts(self) -> dict[Split, SplitCounts]:
        """Return the size of each split.

        Raises:
            DataError: A split to which patients were assigned has no slice.
        """
        patients: dict[str, set[str]] = defaultdict(set)
        volumes: dict[str, set[str]] = defaultdict(set)
        slices: Counter[str] = Counter()
        blank: Counter[str] = Counter()
        for record in self.records:
            patients[record.split].add(record.patient)
            volumes[record.split].add(record.volume)
            slices[record.split] += 1
            blank[record.split] += record.blank
        empty = [split for split in set(self.splits.values()) if not slices[split]]
        if empty:
            raise DataError(
                f"no readable slice is left in {', '.join(sorted(empty))}: {self.unreadable[0].reason}; "
                "replace the unreadable files"
            )
        return {
            split: SplitCounts(
                patients=len(patients[split]),
                volumes=len(volumes[split]),
                slices=slices[split],
                blank=blank[split],
            )
            for split in SPLITS
        }

    def split_hash(self) -> str:
        """Return the SHA-256 over the voxels and the split of each volume."""
        return hashlib.sha256("\n".join(sorted(self._split_lines)).encode()).hexdigest()

    def notes(self) -> tuple[str, ...]:
        """Return warnings about the data, one line each."""
        lines = list(patient_warnings(self.scan))
        kinds = {source.kind for source in self.scan.sources}
        if len(kinds) > 1:
            lines.append(
                f"series of {len(kinds)} kinds are taken; slicebook check lists them, --series chooses"
            )
        if self._disagreeing:
            lines.append(
                f"sform and qform of {len(self._disagreeing)} files disagree; the sform is used: "
                f"{first_names(self._disagreeing)}"
            )
        return tuple(lines)

    def _quarantine(self, files: Iterable[Unreadable]) -> None:
        """Record unreadable files; raise `DataError` if there are too many."""
        self.unreadable += files
        series = [bad for bad in self.unreadable if bad.is_series]
        single = [bad for bad in self.unreadable if not bad.is_series]
        for bad, total, what in (
            (single, self._files, "files"),
            (series, len(self.scan.sources), "series"),
        ):
            if len(bad) >= 2 and len(bad) > MAX_UNREADABLE * total:
                shown = "; ".join(grouped([unreadable.reason for unreadable in bad])[:5])
                raise DataError(
                    f"{len(bad)} of {total} {what} cannot be read, more than {MAX_UNREADABLE:.0%}: {shown}; "
                    "replace or remove them (slicebook check lists all)"
                )

    def _is_new(self, source: Source, part: ConvertedPart) -> bool:
        first, path = self._voxels.setdefault(part.digest, (source, part.path))
        if part.blank or (
            first is source and path == part.path
        ):  # blank slices are equal without being copies
            return True
        if first.patient != source.patient:
            raise DataError(
                f"{part.path}: the same voxels as {path}, of another patient; splits could overlap; "
                "remove one of them, or give both to one patient by --patient-regex"
            )
        return False

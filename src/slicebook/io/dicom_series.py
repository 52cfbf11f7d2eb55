"""Read DICOM: find the series below a folder, and read a series as a `Volume` in RAS+ millimetres.

A volume is one stack (see `dicom_stacks`), sorted by position along the slice normal. Slices that are not
evenly spaced are a `DataError`; nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Integer

from slicebook.errors import DataError
from slicebook.io.dicom_file import DicomHeader, MosaicError, is_dicom, read_header, read_private_traits
from slicebook.io.dicom_pixels import intensities
from slicebook.io.dicom_stacks import SAME_PLACE, UNEVEN, Slice, Stack, stacks_of
from slicebook.io.dicom_tags import PassedOver
from slicebook.io.limits import LIMITS, Limits
from slicebook.io.volume import PLANES, Plane, Volume, check_affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_APPLE_DOUBLE = bytes.fromhex("00051607")


@dataclass(frozen=True)
class DicomSeries:
    """One stack of slices, described by its headers. A DICOM series may hold several stacks.

    Attributes:
        patient_id: as in the files, and therefore private; empty if absent.
        series_uid: Series Instance UID; that of the first slice if they differ.
        description: free text of the scanner; private too.
        acquisition: Acquisition Number; none if absent, or if it differs within the stack.
        plane: the anatomical plane nearest to the slices.
        files: sorted by position along the normal of the slices.
        frames: number of slices (an enhanced file holds many).
        modality: such as MR; empty if absent.
        image_type: the values of Image Type, in upper case.
        shape: rows and columns of a slice.
        spacing: between rows and between columns, in mm.
        echo_time: in ms; none if absent, or if it differs within the stack.
        parts: what distinguishes it from other stacks of its series, such as "TE 4.92 ms"; no identifiers.
        frame_numbers: of each file, the frames (from 0) that belong to the stack.
        private_text: number of files by keyword of a header field with text about the patient, the site or
            the staff; never the text itself.
    """

    patient_id: str
    series_uid: str
    description: str
    acquisition: int | None
    plane: Plane
    files: tuple[Path, ...]
    frames: int
    modality: str
    image_type: tuple[str, ...]
    shape: tuple[int, int]
    spacing: tuple[float, float]
    echo_time: float | None
    parts: tuple[str, ...]
    frame_numbers: tuple[tuple[int, ...], ...]
    private_text: Mapping[str, int]

    @property
    def key(self) -> str:
        """Key of a stack within its patient; stacks that differ only in shape or orientation share it."""
        return " ".join((self.series_uid, str(self.acquisition), *self.parts))

    @property
    def label(self) -> str:
        """Text for a list of series; without identifiers and free text of the header."""
        modality = self.modality if re.fullmatch("[A-Z]{2}", self.modality) else "DICOM"
        (rows, columns), (row_mm, column_mm) = self.shape, self.spacing
        size = f"{self.frames} slice{'s' * (self.frames != 1)} of {rows} × {columns}"
        echo = f"TE {self.echo_time:g} ms" if self.echo_time is not None else ""
        traits = dict.fromkeys(part for part in (echo, *self.parts) if part)
        return ", ".join((f"{modality} {self.plane}", f"{size}, {row_mm:.3g} × {column_mm:.3g} mm", *traits))


def find_dicom_series(
    folder: Path | str,
    *,
    limits: Limits = LIMITS,
    unreadable: Callable[[Path, DataError], None] | None = None,
    patient_of: Callable[[Path], str | None] | None = None,
    skipped: Callable[[Path, str], None] | None = None,
) -> list[DicomSeries]:
    """Return the stacks of slices below a folder, from headers alone, sorted by patient, series and traits.

    Files that are not DICOM are skipped; so are DICOM files without slices (reports, DICOMDIR, screen
    captures, segmentations) and localizers. Slices at the same position are separated by echo time, image
    type, b-value, time and similar traits; acquisitions that form one even stack are joined.

    Args:
        folder: searched recursively, without hidden files.
        limits: limits on memory per file.
        unreadable: called with each file that is damaged or has no geometry, and the reason; for mosaics,
            once per series.
        patient_of: returns the patient of a file, in place of its PatientID, before slices are stacked; None
            skips the file.
        skipped: called with each DICOM file that is skipped, and the reason in one or two words ("no
            pixels", "localizer", "no patient").

    Raises:
        DataError: the folder does not exist; or, without `unreadable`, the first damaged file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; wanted one with DICOM files below it")
    pass_over = skipped or (lambda _path, _reason: None)
    headers: list[DicomHeader] = []
    mosaics: dict[str, list[Path]] = {}
    for path in _files_below(folder, pass_over):
        try:
            header = read_header(path, limits) if is_dicom(path) else None
        except MosaicError as error:
            mosaics.setdefault(error.series_uid, []).append(path)
            continue
        except DataError as error:
            if unreadable is None:
                raise
            unreadable(path, error)
            continue
        if isinstance(header, PassedOver):
            pass_over(path, header.reason)
        elif header is not None and header.is_localizer:
            pass_over(path, "localizer")
        elif header is not None:
            patient = header.patient_id if patient_of is None else patient_of(path)
            if patient is None:
                pass_over(path, "no patient")
            else:
                headers.append(replace(header, patient_id=patient))
    for series_uid, paths in mosaics.items():
        refusal = MosaicError(paths[0], series_uid, len(paths))
        if unreadable is None:
            raise refusal
        unreadable(paths[0], refusal)
    stacks = stacks_of(headers, lambda header: read_private_traits(header.path, limits))
    series = [_series_of(stack) for stack in stacks]
    return sorted(series, key=lambda item: (item.patient_id, item.series_uid, item.acquisition or 0))


def read_dicom_series(series: DicomSeries | Sequence[Path], *, limits: Limits = LIMITS) -> Volume:
    """Read one series: array[column, row, slice], slices sorted along their normal, intensities rescaled.

    MONOCHROME1 is inverted, so that high is bright. The affine is converted from LPS to RAS.

    Args:
        series: one returned by `find_dicom_series`, or the files of one.
        limits: limits on memory.

    Raises:
        DataError: a file is damaged, or not a grey image with geometry, or the files do not form one even
            stack: several series, a missing slice, two slices at one position.
    """
    files = series.files if isinstance(series, DicomSeries) else tuple(Path(file) for file in series)
    if not files:
        raise DataError("series: wanted DICOM files, got none")
    headers = [_header_of(file, limits) for file in files]
    if isinstance(series, DicomSeries):
        numbers = series.frame_numbers
        _check_unchanged(series, headers)
    else:
        numbers = tuple(tuple(range(len(header.frames))) for header in headers)
        _check_one_stack(headers, limits)
    slices = [Slice(h, n, {}) for h, chosen in zip(headers, numbers, strict=True) for n in chosen]
    folder = files[0].parent
    order, affine = _order_and_affine(folder, slices)
    rows, columns = headers[0].shape
    limits.check(folder, limits.max_bytes, rows * columns * len(slices) * 4, "")
    array = np.empty((columns, rows, len(slices)), dtype=np.float32, order="F")
    slots = iter(np.argsort(order))  # position in the stack of each slice in reading order
    for header, chosen in zip(headers, numbers, strict=True):
        for pixels in intensities(header, limits, chosen):
            array[:, :, next(slots)] = pixels.T
    return Volume(array, affine, array.shape)


# --- Files


def _files_below(folder: Path, skipped: Callable[[Path, str], None]) -> Iterator[Path]:
    """Yield the files below a folder in order, without hidden ones; linked folders are followed once."""
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in visited else sorted(n for n in folders if not n.startswith("."))
        if real in visited:
            continue
        visited.add(real)
        for path in (Path(root, name) for name in sorted(names)):
            if path.name.startswith("._") and _is_apple_double(path):
                skipped(path, "AppleDouble")
            elif path.is_symlink() and not path.exists():
                skipped(path, "broken link")
            elif not path.name.startswith("."):
                yield path


def _is_apple_double(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == _APPLE_DOUBLE
    except OSError:
        return False


def _header_of(path: Path, limits: Limits) -> DicomHeader:
    header = read_header(path, limits)
    if isinstance(header, PassedOver):
        raise DataError(header.message)
    return header


def _check_one_stack(headers: Sequence[DicomHeader], limits: Limits) -> None:
    stacks = stacks_of(headers, lambda header: read_private_traits(header.path, limits))
    if len(stacks) > 1:
        raise DataError(
            f"{headers[0].path.parent}: these files are {len(stacks)} stacks (by series, orientation, shape, "
            "or by traits such as echo time and b-value), wanted one; read those of find_dicom_series one by "
            "one, or give their folder"
        )


def _check_unchanged(series: DicomSeries, headers: Sequence[DicomHeader]) -> None:
    for header, numbers in zip(headers, series.frame_numbers, strict=True):
        if header.shape != series.shape or max(numbers) >= len(header.frames):
            raise DataError(f"{header.path}: has changed since its folder was searched; search it again")


# --- Stacks


def _series_of(stack: Stack) -> DicomSeries:
    def distance(item: Slice) -> float:
        return float(item.frame.position @ item.frame.normal)

    slices = sorted(stack.slices, key=distance)
    numbers: dict[Path, list[int]] = {}
    for item in slices:
        numbers.setdefault(item.header.path, []).append(item.number)
    files = {item.header.path: item.header for item in slices}
    first, frame = slices[0].header, slices[0].frame
    acquisition, echo_time = (
        next(iter(values)) if len(values := {item.trait(name) for item in slices}) == 1 else None
        for name in ("acquisition", "echo time")
    )
    row_mm, column_mm = frame.spacing.tolist()
    return DicomSeries(
        patient_id=first.patient_id,
        series_uid=first.series_uid,
        description=first.description,
        acquisition=int(acquisition) if isinstance(acquisition, float) else None,
        plane=PLANES[int(np.argmax(np.abs(frame.normal)))],
        files=tuple(files),
        frames=len(slices),
        modality=first.modality,
        image_type=first.image_type,
        shape=first.shape,
        spacing=(row_mm, column_mm),
        echo_time=echo_time if isinstance(echo_time, float) else None,
        parts=stack.parts,
        frame_numbers=tuple(tuple(sorted(chosen)) for chosen in numbers.values()),
        private_text=Counter(field for header in files.values() for field in header.private_text),
    )


def _order_and_affine(
    folder: Path, slices: Sequence[Slice]
) -> tuple[Integer[np.ndarray, " n"], Float64[np.ndarray, "4 4"]]:
    """Return the order of the slices along their normal, and the affine of the stack in RAS."""
    first = slices[0].frame
    normal = first.normal
    positions = np.array([item.frame.position for item in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    step = normal * first.thickness
    if len(gaps):
        _check_even(folder, gaps, [_name_of(slices[i]) for i in order])
        step = (positions[-1] - positions[0]) / len(gaps)
        # The shear of a tilted gantry is kept; less than a tenth of a pixel is rounding.
        if np.linalg.norm(np.cross(step, normal)) * len(gaps) < 0.1 * first.spacing.min():
            step = normal * (step @ normal)
        slant = positions - positions[0] - np.arange(len(positions))[:, None] * step
        if np.linalg.norm(np.cross(slant, normal), axis=1).max() > 0.5 * first.spacing.min():
            raise DataError(f"{folder}: the slices are not on one line; resample them to a straight stack")
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * first.spacing[1]
    lps[:3, 1] = first.orientation[3:] * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    affine = _LPS_TO_RAS @ lps
    check_affine(folder, affine)
    return order, affine


def _name_of(item: Slice) -> str:
    path, count = item.header.path, len(item.header.frames)
    return path.name if count == 1 else f"frame {item.number + 1} of {path.name}"


def _check_even(folder: Path, gaps: Float64[np.ndarray, " n"], names: Sequence[str]) -> None:
    step = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    nearest, widest = int(np.argmin(gaps)), int(np.argmax(gaps))
    if gaps[nearest] < SAME_PLACE:
        repeated = int((gaps < SAME_PLACE).sum())
        raise DataError(
            f"{folder}: {names[nearest]} and {names[nearest + 1]} are at the same position (as are "
            f"{repeated:,} pairs in all); no image type, echo, b-value, time or acquisition number "
            "distinguishes them, wanted one slice per position; remove copies, or export each repeat alone"
        )
    if np.abs(gaps - step).max() <= UNEVEN * step:
        return
    missing = round(gaps[widest] / step) - 1
    if missing > 0 and abs(gaps[widest] / step - missing - 1) <= UNEVEN * (missing + 1):
        raise DataError(
            f"{folder}: {missing} missing between {names[widest]} and {names[widest + 1]} "
            f"({gaps[widest]:.3f} mm apart, the others {step:.3f}), wanted every slice; copy the series again"
        )
    raise DataError(
        f"{folder}: the slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart, wanted even within "
        f"{UNEVEN:.0%}; resample the series to an even spacing first"
    )

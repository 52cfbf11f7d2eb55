"""DICOM in: a folder to its series, a series to a `Volume` in RAS+ millimetres.

A volume is one stack: the same series UID, acquisition, orientation, shape and pixel spacing, sorted by
position along the normal of its slices. What does not make an even stack is a `DataError`, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Integer

from slicebook.dicom_file import DicomHeader, Frame, intensities, is_dicom, read_header
from slicebook.errors import DataError
from slicebook.volumes import LIMITS, PLANES, Limits, Plane, Volume, check_affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.05  # of the slice spacing; rounded positions stay far below, a missing slice far above
_SAME_PLACE = 1e-3  # mm


@dataclass(frozen=True)
class DicomSeries:
    """One stack of slices, as its headers tell it.

    Attributes:
        patient_id: as in the files, and so private; empty where the files have none.
        series_uid: Series Instance UID.
        description: the free text of the scanner; private too.
        acquisition: Acquisition Number; none where absent, or where several interleave to one stack.
        plane: the anatomical plane nearest to that of the slices.
        files: sorted by position along the normal of the slices.
        frames: number of slices (an enhanced file holds many).
        modality: such as MR; empty where absent.
        image_type: the values of Image Type, in upper case.
        shape: rows and columns of a slice.
        parts: what parts it from other stacks of its series, such as "TE 4.92 ms"; free of identifiers.
    """

    patient_id: str
    series_uid: str
    description: str
    acquisition: int | None
    plane: Plane
    files: tuple[Path, ...]
    frames: int
    modality: str = ""
    image_type: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    parts: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What a list of series may print: no identifier, and none of the free text of the header."""
        modality = self.modality if re.fullmatch("[A-Z]{2}", self.modality) else "DICOM"
        rows, columns = self.shape
        size = f"{self.frames} slice{'s' * (self.frames != 1)} of {rows} × {columns}"
        return ", ".join((f"{modality} {self.plane}", size, *self.parts))


def find_dicom_series(
    folder: Path | str,
    *,
    limits: Limits = LIMITS,
    unreadable: Callable[[Path, DataError], None] | None = None,
    patient_of: Callable[[Path], str | None] | None = None,
    skipped: Callable[[Path, str], None] | None = None,
) -> list[DicomSeries]:
    """Return the series below a folder, from headers alone, sorted by patient, series and acquisition.

    Files that are not DICOM, and DICOM without pixels (reports, DICOMDIR), are passed over. Acquisitions of a
    series are apart, unless they interleave to one even stack (or number every slice, as some scanners do).

    Args:
        folder: searched to its depths.
        limits: what a file may ask for.
        unreadable: called with each damaged or unplaceable file and the reason.
        patient_of: tells the patient of a file, instead of its PatientID, before slices are stacked; None
            leaves the file out.
        skipped: called with each DICOM file that is passed over, and why in one or two words ("no pixels",
            "localizer", "no patient").

    Raises:
        DataError: the folder is absent; or, without `unreadable`, the first damaged file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; wanted one with DICOM files below it")

    def header_of(path: Path) -> DicomHeader | None:
        try:
            if not is_dicom(path):
                return None
            header = read_header(path, limits)
            patient = patient_of(path) if patient_of is not None else header.patient_id if header else ""
            if header is not None and patient is not None:
                return replace(header, patient_id=patient)
            if skipped is not None:
                skipped(path, "no pixels" if header is None else "no patient")
            return None
        except DataError as error:
            if unreadable is None:
                raise
            unreadable(path, error)
            return None

    headers = [header for path in sorted(folder.rglob("*")) if (header := header_of(path))]
    found = [_series_of(stack) for stack in _stacks(headers)]
    return sorted(found, key=lambda series: (series.patient_id, series.series_uid, series.acquisition or 0))


def read_dicom_series(series: DicomSeries | Sequence[Path], *, limits: Limits = LIMITS) -> Volume:
    """Read one series: array[column, row, slice], slices sorted along their normal, intensities rescaled.

    MONOCHROME1 is turned round so that high is bright. The affine is that of the DICOM, LPS turned into RAS.

    Args:
        series: one that `find_dicom_series` found, or the files of one.
        limits: what the volume may ask for.

    Raises:
        DataError: a file is damaged or no grey image with a place in the patient, or the files do not make
            one even stack: several series, a missing slice, two at one place.
    """
    files = series.files if isinstance(series, DicomSeries) else tuple(Path(file) for file in series)
    headers = [header for file in files if (header := read_header(file, limits))]
    if len(headers) < len(files) or not headers:
        raise DataError(
            f"{files[0].parent if files else 'series'}: wanted DICOM images alone, got other files or none"
        )
    folder = headers[0].path.parent
    stacks = _stacks(headers)
    if len(stacks) > 1:
        raise DataError(
            f"{folder}: these files are {len(stacks)} stacks (by series, acquisition, orientation or shape), "
            "wanted one; read those of find_dicom_series one by one"
        )
    frames = [(header.path, frame) for header in headers for frame in header.frames]
    order, affine = _place(folder, frames)
    rows, columns = headers[0].shape
    limits.check(folder, limits.max_bytes, rows * columns * len(frames) * 4, "")
    array = np.empty((columns, rows, len(frames)), dtype=np.float32, order="F")
    slots = iter(np.argsort(order))  # frames in reading order to their place in the stack
    for header in headers:
        for pixels in intensities(header, limits):
            array[:, :, next(slots)] = pixels.T
    return Volume(array, affine, array.shape)


# --- From headers to stacks


def _stacks(headers: Sequence[DicomHeader]) -> list[list[DicomHeader]]:
    """Group files that can lie in one stack."""
    groups: list[list[DicomHeader]] = []
    for header in headers:
        group = next((group for group in groups if header.stacks_on(group[0])), None)
        if group is None:
            groups.append([header])
        else:
            group.append(header)
    return [stack for group in groups for stack in _split_by_acquisition(group)]


def _split_by_acquisition(group: list[DicomHeader]) -> list[list[DicomHeader]]:
    """Split, unless the acquisitions interleave: even together, and none with neighbours on its own."""
    acquisitions: dict[int | None, list[DicomHeader]] = {}
    for header in group:
        acquisitions.setdefault(header.acquisition, []).append(header)
    gaps = _gaps(group)
    is_even = len(gaps) > 0 and gaps.min() > _SAME_PLACE and np.ptp(gaps) <= _UNEVEN * gaps.min()
    if is_even and all(_gaps(one).min(initial=np.inf) > 1.5 * gaps.min() for one in acquisitions.values()):
        return [group]
    return list(acquisitions.values())


def _gaps(headers: Sequence[DicomHeader]) -> Float64[np.ndarray, " n"]:
    normal = headers[0].frames[0].normal
    return np.diff(np.sort([frame.position @ normal for header in headers for frame in header.frames]))


def _series_of(stack: list[DicomHeader]) -> DicomSeries:
    first = stack[0]
    acquisitions = {header.acquisition for header in stack}
    return DicomSeries(
        patient_id=first.patient_id,
        series_uid=first.series_uid,
        description=first.description,
        acquisition=acquisitions.pop() if len(acquisitions) == 1 else None,
        plane=PLANES[int(np.argmax(np.abs(first.frames[0].normal)))],
        files=tuple(header.path for header in sorted(stack, key=lambda header: header.distance)),
        frames=sum(len(header.frames) for header in stack),
        modality=first.modality,
        image_type=first.image_type,
        shape=first.shape,
    )


def _place(
    folder: Path, frames: Sequence[tuple[Path, Frame]]
) -> tuple[Integer[np.ndarray, " n"], Float64[np.ndarray, "4 4"]]:
    """Return the order of the frames along their normal and the affine of the stack, in RAS."""
    first = frames[0][1]
    normal = first.normal
    positions = np.array([frame.position for _, frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    step = normal * first.thickness
    if len(gaps):
        _check_even(folder, gaps, [frames[i][0].name for i in order])
        step = (positions[-1] - positions[0]) / len(gaps)
        # A slanted stack (a tilted gantry) keeps its slant; less than a tenth of a pixel is rounding.
        if np.linalg.norm(np.cross(step, normal)) * len(gaps) < 0.1 * first.spacing.min():
            step = normal * (step @ normal)
        slant = positions - positions[0] - np.arange(len(positions))[:, None] * step
        if np.linalg.norm(np.cross(slant, normal), axis=1).max() > 0.5 * first.spacing.min():
            raise DataError(f"{folder}: the slices do not lie on one line; resample them to a straight stack")
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * first.spacing[1]
    lps[:3, 1] = first.orientation[3:] * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    affine = _LPS_TO_RAS @ lps
    check_affine(folder, affine)
    return order, affine


def _check_even(folder: Path, gaps: Float64[np.ndarray, " n"], names: Sequence[str]) -> None:
    step = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    nearest, widest = int(np.argmin(gaps)), int(np.argmax(gaps))
    if gaps[nearest] < _SAME_PLACE:
        raise DataError(
            f"{folder}: {names[nearest]} and {names[nearest + 1]} lie at the same place, wanted one slice a "
            "position; remove the copy, or put each repeat, echo or b-value into a series of its own"
        )
    if np.abs(gaps - step).max() <= _UNEVEN * step:
        return
    missing = round(gaps[widest] / step) - 1
    if missing > 0 and abs(gaps[widest] / step - missing - 1) <= _UNEVEN * (missing + 1):
        raise DataError(
            f"{folder}: {missing} missing between {names[widest]} and {names[widest + 1]} "
            f"({gaps[widest]:.3f} mm apart, the others {step:.3f}), wanted every slice; copy the series again"
        )
    raise DataError(
        f"{folder}: the slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart, wanted even within "
        f"{_UNEVEN:.0%}; resample the series to an even spacing first"
    )

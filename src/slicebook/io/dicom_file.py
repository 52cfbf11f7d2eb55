"""Read the header of one DICOM file defensively.

Only the tags that an image and its geometry need are read, and never more than the limits allow.

Where a DICOM file can be refused or left out, in the order of reading: `dicom_tags.reason_to_pass_over` (no
volume slice), `read_header` here (damaged, or without a place in the patient), `dicom_stacks` and
`dicom_series` (slices that do not make one even volume), `data.layouts.dicom` (series not asked for),
`dicom_pixels` (pixels that cannot be decoded).
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float64
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from slicebook.errors import DataError
from slicebook.io.dicom_tags import (
    WANTED,
    PassedOver,
    dimensions_of,
    image_type_of,
    private_text,
    private_traits,
    reason_to_pass_over,
    traits_of,
)
from slicebook.io.limits import Limits

_NAMED_AS_DICOM = {".dcm", ".dicom", ".ima"}
_PYDICOM_FAULTS = (  # raised by pydicom and its decoders on damaged files
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError),
    *(ValueError, NotImplementedError, struct.error, zlib.error, BytesLengthException, InvalidDicomError),
)
_LONG_GROUP = 0x0029  # large private groups begin here, after the geometry of a classic slice
_PIXEL_GROUP = 0x7FE0
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # float, double, integer
_VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}


class MosaicError(DataError):
    """A file holds several slices as tiles of one image, as Siemens and United Imaging write them.

    Attributes:
        series_uid: Of the file.
    """

    def __init__(self, path: Path, series_uid: str, count: int = 1) -> None:
        what = "is a mosaic" if count == 1 else f"and {count - 1} more of its series are mosaics"
        super().__init__(f"{path}: {what} of several slices a file; turn the series into NIfTI with dcm2niix")
        self.series_uid = series_uid


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: its geometry in LPS mm, its rescaling, and its traits."""

    position: Float64[np.ndarray, " 3"]  # centre of the first pixel
    orientation: Float64[np.ndarray, " 6"]  # unit vectors along increasing column and row index
    spacing: Float64[np.ndarray, " 2"]  # between rows, between columns
    thickness: float  # between slices, for a stack of one
    slope: float
    intercept: float
    traits: Mapping[str, Hashable]  # by the names of dicom_tags.TRAITS

    @property
    def normal(self) -> Float64[np.ndarray, " 3"]:
        """The unit normal of the slice, along which a stack is sorted."""
        (a, b, c), (d, e, f) = self.orientation[:3].tolist(), self.orientation[3:].tolist()
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """The header of one file, without its pixels."""

    path: Path
    patient_id: str
    study_uid: str
    series_uid: str
    series_number: str
    description: str
    modality: str
    image_type: tuple[str, ...]  # upper case
    shape: tuple[int, int]  # rows, columns
    frames: tuple[Frame, ...]
    private_text: tuple[str, ...]  # keywords of fields with text about the patient, the site or the staff

    @property
    def is_localizer(self) -> bool:
        """Whether its Image Type marks it as a localizer."""
        return any(kind in value for value in self.image_type for kind in ("LOCALIZER", "SCOUT", "TOPOGRAM"))


@contextmanager
def wrap_pydicom_errors(path: Path) -> Iterator[None]:
    """Turn exceptions of pydicom into a `DataError`. Their text may be private and is left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except _PYDICOM_FAULTS as error:
        reason = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise DataError(
            f"{path}: is damaged or unreadable DICOM ({reason}); export or copy it again"
        ) from error


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by name or content, so that a damaged one is reported.

    The content may begin with the preamble or, in files of older archives, with the elements.
    """
    with wrap_pydicom_errors(path):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() in _NAMED_AS_DICOM or _start_of(file) is not None


def read_fields(path: Path, limits: Limits, keywords: Sequence[str]) -> Dataset:
    """Read some elements of a file by keyword, without its pixels."""
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in keywords]
    with wrap_pydicom_errors(path), _opened(path, limits) as (file, syntax, meta):
        dataset = _read(file, syntax, meta, _PIXEL_GROUP, tags)
        for _ in dataset.iterall():  # values are converted when they are first used: do it here, wrapped
            pass
        return dataset


def load_whole(path: Path, limits: Limits) -> Dataset:
    """Read a file with its pixels; a deflated data set is expanded only as far as `limits` allow."""
    with _opened(path, limits) as (file, syntax, meta):
        return _read(file, syntax, meta, None, None)


def read_private_traits(path: Path, limits: Limits) -> dict[str, Hashable]:
    """Return the traits in private tags, for slices that no standard tag separates."""
    with wrap_pydicom_errors(path), _opened(path, limits) as (file, syntax, meta):
        return private_traits(_read(file, syntax, meta, _PIXEL_GROUP, None))


def read_header(path: Path, limits: Limits) -> DicomHeader | PassedOver:
    """Return the header of a file, or why it is not a slice of a volume.

    Raises:
        MosaicError: It holds several slices as tiles.
        DataError: It is damaged, or an image without geometry.
    """
    with wrap_pydicom_errors(path):
        dataset, has_pixels = _load_header(path, limits)
        image_type = image_type_of(dataset)
        passed_over = reason_to_pass_over(path, dataset, image_type, has_pixels)
        if passed_over is not None:
            return passed_over
        if "SeriesInstanceUID" not in dataset:
            raise DataError(
                f"{path}: has no SeriesInstanceUID, wanted one to know its series; export it again"
            )
        if any(kind in value for value in image_type for kind in ("MOSAIC", "VFRAME")):
            raise MosaicError(path, str(dataset.SeriesInstanceUID))
        header = DicomHeader(
            path=path,
            patient_id=str(dataset.get("PatientID") or "").strip(),
            study_uid=str(dataset.get("StudyInstanceUID") or ""),
            series_uid=str(dataset.SeriesInstanceUID),
            series_number=str(dataset.get("SeriesNumber") or ""),
            description=str(dataset.get("SeriesDescription") or "").strip(),
            modality=str(dataset.get("Modality") or "").strip(),
            image_type=image_type,
            shape=(int(dataset.Rows), int(dataset.Columns)),
            frames=_frames_of(path, dataset),
            private_text=private_text(dataset),
        )
        rows, columns = header.shape
        limits.check(path, limits.max_bytes, 4 * rows * columns * len(header.frames), "")
        return header


# --- From bytes to elements


def _start_of(file: BinaryIO) -> int | None:
    """Return the offset of the first element; None if the first bytes are not DICOM."""
    head = file.read(132)
    if head[128:] == b"DICM":
        return 132
    if len(head) < 12:
        return None
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}2HI", head)
        # An element of group 2 or 8 with a short value, in explicit or implicit VR.
        if (group, element) in {(2, 0), (2, 1), (2, 2), (2, 16)} or (group == 8 and element <= 0x0022):
            explicit = head[4:6] in _VRS and struct.unpack_from(f"{order}H", head, 6)[0] <= 128
            if explicit or (order == "<" and length <= 128 and length % 2 == 0):
                return 0
    return None


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[tuple[BinaryIO | BytesIO, UID, FileMetaDataset]]:
    """Open a file at its first element after the file meta information; inflate a deflated data set."""
    size = path.stat().st_size
    limits.check(path, size, size, "")
    with path.open("rb") as file:
        start = _start_of(file)
        if start is None:
            raise InvalidDicomError
        file.seek(start)
        meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2))
        syntax = UID(str(meta.get("TransferSyntaxUID") or _guess_syntax(file)))
        meta.TransferSyntaxUID = syntax
        if syntax != DeflatedExplicitVRLittleEndian:
            yield file, syntax, meta
            return
        packed = file.read()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(packed, limits.allowance(len(packed)) + 1)
    limits.check(path, len(packed), len(content), "if you trust it, export it uncompressed")
    if not inflater.eof:
        raise DataError(f"{path}: the deflated data set is cut off; copy or download it again")
    yield BytesIO(content), syntax, meta


def _guess_syntax(file: BinaryIO) -> UID:
    """Return the transfer syntax of a data set without file meta information, from its first element."""
    head = file.read(6)
    file.seek(-len(head), 1)
    if head[4:6] not in _VRS:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if head[:2] == b"\0\x08" else ExplicitVRLittleEndian


def _read(
    file: BinaryIO | BytesIO,
    syntax: UID,
    meta: FileMetaDataset,
    stop: int | None,
    wanted: list[BaseTag | int] | None,
    reached: list[BaseTag] | None = None,
) -> Dataset:
    """Read elements up to a group; the first of those not read is appended to `reached`."""

    def stop_when(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if stop is None or tag.group < stop:
            return False
        if reached is not None:
            reached.append(tag)
        return True

    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dataset = read_dataset(file, implicit, little, stop_when=stop_when, specific_tags=wanted)
    dataset.file_meta = meta
    dataset.set_original_encoding(implicit, little)
    return dataset


def _load_header(path: Path, limits: Limits) -> tuple[Dataset, bool]:
    """Return the wanted elements of a file, and whether pixels follow.

    Reading stops before the large private groups if a classic slice is complete by then and the rest of the
    file is large enough for its pixels.
    """
    wanted: list[BaseTag | int] = list(WANTED)
    with _opened(path, limits) as (file, syntax, meta):
        dataset = _read(file, syntax, meta, _LONG_GROUP, wanted)
        geometry = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
        here = file.tell()
        left = file.seek(0, 2) - here
        if not syntax.is_encapsulated and all(keyword in dataset for keyword in geometry):
            pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("BitsAllocated") or 8) // 8
            if left >= pixels > 0 and int(dataset.get("NumberOfFrames") or 1) == 1:
                return dataset, True
        file.seek(here)
        reached: list[BaseTag] = []
        dataset.update(_read(file, syntax, meta, _PIXEL_GROUP, wanted, reached))
        return dataset, bool(reached) and int(reached[-1]) in _PIXELS


# --- From elements to a header


def _frames_of(path: Path, dataset: Dataset) -> tuple[Frame, ...]:
    """Return the frames of a classic (one) or enhanced (many) file."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if count != 1:
            raise DataError(
                f"{path}: has {count} frames without places in the patient; export it as enhanced MR"
            )
        return (_frame_of(path, lambda _, keyword: dataset.get(keyword), traits_of(dataset, None)),)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise DataError(f"{path}: says {count} frames and describes {len(groups)}; export or copy it again")

    def lookup(frame: Dataset) -> Callable[[str, str], Any]:
        def value(sequence: str, keyword: str) -> Any:
            outer, _, inner = sequence.partition(".")
            items = next((items for group in (frame, shared) if (items := group.get(outer))), None)
            if items and inner:
                items = items[0].get(inner)
            return items[0].get(keyword) if items else None

        return value

    dimensions = dimensions_of(dataset)
    values = [lookup(group) for group in groups]
    return tuple(_frame_of(path, value, traits_of(dataset, value, dimensions)) for value in values)


def _frame_of(path: Path, value: Callable[[str, str], Any], traits: Mapping[str, Hashable]) -> Frame:
    """Return a frame from `value(functional group, keyword)`."""

    def numbers(sequence: str, keyword: str, count: int) -> Float64[np.ndarray, " n"]:
        read = np.array([float(number) for number in value(sequence, keyword) or ()])
        if read.shape != (count,) or not np.isfinite(read).all():
            raise DataError(
                f"{path}: {keyword} is {'unusable' if read.size else 'absent'}, wanted {count} numbers to "
                "know its place in the patient; export the original images, with their geometry"
            )
        return read

    orientation = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > 1e-3 or spacing.min() <= 0:
        raise DataError(
            f"{path}: its axes are not at right angles or its pixels have no size; export it again"
        )
    measure = "PixelMeasuresSequence"
    thickness = value(measure, "SpacingBetweenSlices") or value(measure, "SliceThickness") or 1
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    if not slope:  # absent, empty or 0 means unscaled, as in NIfTI-1
        slope, intercept = 1, 0 if slope == 0 else intercept
    return Frame(
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=(orientation / np.linalg.norm(orientation, axis=1, keepdims=True)).ravel(),
        spacing=spacing,
        thickness=abs(float(thickness)),
        slope=float(slope),
        intercept=0.0 if intercept in (None, "") else float(intercept),
        traits=traits,
    )

"""One DICOM file, not trusted: its header and its intensities.

What is read is what an image in space needs: never the whole header, and never more than the limits allow.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian

from slicebook.errors import DataError
from slicebook.volumes import Limits

_NAMED_AS_DICOM = {".dcm", ".dicom", ".ima"}
_PYDICOM_FAULTS = (  # what pydicom and its decoders raise on damaged files
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError),
    *(ValueError, NotImplementedError, struct.error, zlib.error, BytesLengthException, InvalidDicomError),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice: its place in LPS mm, and how its stored values become intensities."""

    position: Float64[np.ndarray, " 3"]  # centre of the first pixel
    orientation: Float64[np.ndarray, " 6"]  # unit vectors along increasing column and row index
    spacing: Float64[np.ndarray, " 2"]  # between rows, between columns
    thickness: float  # between slices, for a stack of one
    slope: float
    intercept: float

    @property
    def normal(self) -> Float64[np.ndarray, " 3"]:
        """The unit vector in which a stack is sorted: across the slice, along neither side."""
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """One file without its pixels. Its frames share orientation and spacing."""

    path: Path
    patient_id: str
    series_uid: str
    description: str
    acquisition: int | None
    modality: str
    image_type: tuple[str, ...]  # upper case
    shape: tuple[int, int]  # rows, columns
    frames: tuple[Frame, ...]

    @property
    def distance(self) -> float:
        """How far along the normal its first slice lies, in mm."""
        return min(float(frame.position @ frame.normal) for frame in self.frames)

    def stacks_on(self, other: DicomHeader) -> bool:
        """Return whether both files can belong to one stack, acquisitions aside."""
        mine, theirs = self.frames[0], other.frames[0]
        return (
            (self.patient_id, self.series_uid, self.shape)
            == (other.patient_id, other.series_uid, other.shape)
            and np.allclose(mine.orientation, theirs.orientation, atol=1e-3)
            and np.allclose(mine.spacing, theirs.spacing, rtol=1e-3)
        )


@contextmanager
def _at_the_door(path: Path) -> Iterator[None]:
    """Turn what pydicom raises into a `DataError` of one line; its warnings may quote patients: silence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except _PYDICOM_FAULTS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{path}: is damaged or unreadable DICOM ({reason}); export or copy it again"
        ) from error


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its name or its content, so that a damaged one is not passed over."""
    with _at_the_door(path):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() in _NAMED_AS_DICOM or file.read(132)[128:] == b"DICM"


def _load(path: Path, limits: Limits, *, pixels: bool) -> Dataset:
    """Read a file; one that is deflated as a whole only as far as `limits` let it expand."""
    size = path.stat().st_size
    limits.check(path, size, size, "")
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return dcmread(path, stop_before_pixels=not pixels)
    packed = path.read_bytes()[132 + 12 + int(meta.FileMetaInformationGroupLength) :]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(packed, limits.allowance(len(packed)) + 1)
    limits.check(path, len(packed), len(content), "if you trust it, export it uncompressed")
    if not inflater.eof:
        raise DataError(f"{path}: the deflated data set is cut off; copy or download it again")
    dataset = read_dataset(BytesIO(content), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = meta
    dataset.set_original_encoding(False, True)
    return dataset


def read_header(path: Path, limits: Limits) -> DicomHeader | None:
    """Return the header of a file, or none for DICOM that is no image."""
    with _at_the_door(path):
        dataset = _load(path, limits, pixels=False)
        if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" in dataset.file_meta:
            raise DataError(f"{path}: its header is cut off or empty; copy or download it again")
        if "Rows" not in dataset or "Columns" not in dataset:
            return None
        if "SeriesInstanceUID" not in dataset:
            raise DataError(
                f"{path}: has no SeriesInstanceUID, wanted one to know its series; export it again"
            )
        if "MOSAIC" in dataset.get("ImageType", []):
            raise DataError(f"{path}: is a mosaic of several slices; turn it into NIfTI with dcm2niix")
        number = dataset.get("AcquisitionNumber")
        header = DicomHeader(
            path=path,
            patient_id=str(dataset.get("PatientID") or "").strip(),
            series_uid=str(dataset.SeriesInstanceUID),
            description=str(dataset.get("SeriesDescription") or "").strip(),
            acquisition=None if number in (None, "") else int(number),
            modality=str(dataset.get("Modality") or "").strip(),
            image_type=_image_type_of(dataset),
            shape=(int(dataset.Rows), int(dataset.Columns)),
            frames=_frames_of(path, dataset),
        )
        rows, columns = header.shape
        limits.check(path, limits.max_bytes, 4 * rows * columns * len(header.frames), "")
        if not all(
            np.allclose(one.orientation, header.frames[0].orientation, atol=1e-3) for one in header.frames
        ):
            raise DataError(f"{path}: its frames have several orientations, wanted one stack; split it")
        return header


def _image_type_of(dataset: Dataset) -> tuple[str, ...]:
    values = dataset.get("ImageType") or ()
    return tuple(str(value).strip().upper() for value in ([values] if isinstance(values, str) else values))


def _frames_of(path: Path, dataset: Dataset) -> tuple[Frame, ...]:
    """Return the frames of a classic (one) or enhanced (many) file."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if count != 1:
            raise DataError(
                f"{path}: has {count} frames without places in the patient; export it as enhanced MR"
            )
        return (_frame_of(path, lambda _, keyword: dataset.get(keyword)),)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise DataError(f"{path}: says {count} frames and describes {len(groups)}; export or copy it again")

    def look_up(frame: Dataset) -> Callable[[str, str], Any]:
        def value(sequence: str, keyword: str) -> Any:
            found = [group.get(sequence) for group in (frame, shared) if group.get(sequence)]
            return found[0][0].get(keyword) if found else None

        return value

    return tuple(_frame_of(path, look_up(group)) for group in groups)


def _frame_of(path: Path, value: Callable[[str, str], Any]) -> Frame:
    """Return a frame from `value(functional group, keyword)`."""

    def numbers(sequence: str, keyword: str, count: int) -> Float64[np.ndarray, " n"]:
        found = np.array([float(number) for number in value(sequence, keyword) or ()])
        if found.shape != (count,) or not np.isfinite(found).all():
            raise DataError(
                f"{path}: {keyword} is {'unusable' if found.size else 'absent'}, wanted {count} numbers to "
                "know its place in the patient; export the original images, with their geometry"
            )
        return found

    orientation = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if not np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-3) or spacing.min() <= 0:
        raise DataError(
            f"{path}: its axes are not at right angles or its pixels have no size; export it again"
        )
    measure = "PixelMeasuresSequence"
    thickness = value(measure, "SpacingBetweenSlices") or value(measure, "SliceThickness") or 1
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    return Frame(
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=(orientation / np.linalg.norm(orientation, axis=1, keepdims=True)).ravel(),
        spacing=spacing,
        thickness=abs(float(thickness)),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def intensities(header: DicomHeader, limits: Limits) -> Iterator[Float32[np.ndarray, "rows columns"]]:
    """Yield each frame of a file in its order, rescaled, high is bright."""
    path = header.path
    with _at_the_door(path):
        dataset = _load(path, limits, pixels=True)
        _check_pixels(header, dataset)
        stored, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        darkest_and_brightest = -1 if signed else 2**stored - 1  # their sum: MONOCHROME1 counts down from it
        frames = iter_pixels(dataset, raw=True)
        for frame, pixels in zip(header.frames, frames, strict=True):
            values = pixels.astype(np.float64)
            if dataset.PhotometricInterpretation == "MONOCHROME1":
                values = darkest_and_brightest - values
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = (values * frame.slope + frame.intercept).astype(np.float32)
            if scaled.shape != header.shape or not np.isfinite(scaled).all():
                raise DataError(
                    f"{path}: decodes to {scaled.shape} with slope {frame.slope:g} and intercept "
                    f"{frame.intercept:g}, wanted {header.shape} finite values; export it again"
                )
            yield scaled


def _check_pixels(header: DicomHeader, dataset: Dataset) -> None:
    """Raise `DataError` unless decoding can give grey frames of the size that the header says."""
    path, (rows, columns) = header.path, header.shape
    if "PixelData" not in dataset:
        raise DataError(f"{path}: has no pixel data, or is cut off before its end; copy or export it again")
    kind = str(dataset.get("PhotometricInterpretation"))
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{path}: is {kind}, wanted MONOCHROME1 or MONOCHROME2; export the grey original")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or int(dataset.HighBit) != stored - 1:
        raise DataError(f"{path}: stores {stored} of {allocated} bits, wanted the low ones of 8, 16 or 32")
    if "ModalityLUTSequence" in dataset:
        raise DataError(
            f"{path}: has a modality look-up table, wanted slope and intercept; export it rescaled"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian:
        wanted = rows * columns * len(header.frames) * allocated // 8
        if len(dataset.PixelData) < wanted:
            raise DataError(
                f"{path}: holds {len(dataset.PixelData):,} bytes of pixels, its header wants {wanted:,}; "
                "copy or download it again"
            )
        return
    if not get_decoder(syntax).is_available:
        raise DataError(
            f"{path}: is compressed as {syntax.name}, which cannot be decoded here; decompress it first "
            "(dcmdjpeg of DCMTK, or gdcmconv --raw)"
        )
    for frame in generate_frames(dataset.PixelData, number_of_frames=len(header.frames)):
        size = _codestream_size(frame)
        if size not in (None, (rows, columns)):  # before decoding: the codestream decides what is allocated
            raise DataError(f"{path}: a frame is {size}, its header says {(rows, columns)}; export it again")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG 2000, JPEG or JPEG-LS frame from its own header; none for RLE."""
    start = frame.find(
        b"\xff\x4f\xff\x51"
    )  # JPEG 2000: SOC, SIZ, length, capabilities, width, height, origin
    if 0 <= start <= 256:  # a JP2 box may stand before it
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        return height - top, width - left
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame):  # JPEG: segments up to the start of frame
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack_from(">2H", frame, at + 5)
            return height, width
        at += 2 + length
    return None

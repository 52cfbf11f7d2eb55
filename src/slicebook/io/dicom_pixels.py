"""Pixels of a DICOM file, checked against the header before they are decoded."""

# mypy: allow-untyped-calls

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Shaped
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGLossless, JPEGLosslessSV1

from slicebook.errors import DataError
from slicebook.io.dicom_file import DicomHeader, load_whole, wrap_pydicom_errors
from slicebook.io.limits import Limits

_BY_IMAGECODECS = (JPEGLossless, JPEGLosslessSV1)  # pydicom's own decoder of these is GPL


def intensities(
    header: DicomHeader, limits: Limits, numbers: Sequence[int] | None = None
) -> Iterator[Float32[np.ndarray, "rows columns"]]:
    """Yield frames of a file, rescaled, high is bright.

    Args:
        header: Of the file.
        limits: Limits on memory.
        numbers: Which frames, from 0, in this order; all of them if not given.

    Raises:
        DataError: The pixels are absent, damaged, not grey, or compressed in a way that cannot be decoded.
    """
    path = header.path
    numbers = range(len(header.frames)) if numbers is None else numbers
    with wrap_pydicom_errors(path):
        dataset = load_whole(path, limits)
        _check_pixels(header, dataset)
        stored, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        darkest_and_brightest = -1 if signed else 2**stored - 1  # their sum: MONOCHROME1 counts down from it
        for number, pixels in zip(numbers, _decoded(dataset, numbers), strict=True):
            frame = header.frames[number]
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


def _decoded(dataset: Dataset, numbers: Sequence[int]) -> Iterator[Shaped[np.ndarray, "rows columns"]]:
    """Yield the stored values of frames."""
    if dataset.file_meta.TransferSyntaxUID not in _BY_IMAGECODECS:
        if int(dataset.get("NumberOfFrames") or 1) == 1:
            yield from iter_pixels(dataset, raw=True)
        else:
            yield from iter_pixels(dataset, raw=True, indices=list(numbers))
        return
    import imagecodecs

    frames = list(
        generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    )
    stored, sign = int(dataset.BitsStored), 1 << (int(dataset.BitsStored) - 1)
    for number in numbers:
        values = imagecodecs.jpegsof3_decode(frames[number]).astype(np.int64) & ((1 << stored) - 1)
        # The stream is unsigned: values are two's complement of the stored bits (PS3.5, 8.1.1).
        yield (values ^ sign) - sign if dataset.PixelRepresentation else values


def _check_pixels(header: DicomHeader, dataset: Dataset) -> None:
    """Raise `DataError` unless the pixel data can hold grey frames of the size in the header."""
    path, (rows, columns) = header.path, header.shape
    if "PixelData" not in dataset:
        raise DataError(f"{path}: has no integer pixel data, or is cut off; copy or export it again")
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
    _check_decoder(header, syntax)
    for frame in generate_frames(dataset.PixelData, number_of_frames=len(header.frames)):
        size = _codestream_size(frame)
        if size not in (None, (rows, columns)):  # before decoding: the codestream decides what is allocated
            raise DataError(f"{path}: a frame is {size}, its header says {(rows, columns)}; export it again")


def _check_decoder(header: DicomHeader, syntax: UID) -> None:
    way_out = "decompress it first (dcmdjpeg of DCMTK, or gdcmconv --raw)"
    if syntax in _BY_IMAGECODECS:
        try:
            import imagecodecs  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"{header.path}: is compressed as {syntax.name}; install slicebook[codecs], which decodes "
                f"it, or {way_out}"
            ) from error
    elif not get_decoder(syntax).is_available:
        raise DataError(
            f"{header.path}: is compressed as {syntax.name}, which cannot be decoded here; {way_out}"
        )


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG 2000, JPEG or JPEG-LS frame from its own header; none for RLE."""
    start = frame.find(
        b"\xff\x4f\xff\x51"
    )  # JPEG 2000: SOC, SIZ, length, capabilities, width, height, origin
    if 0 <= start <= 256:  # a JP2 box may precede it
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

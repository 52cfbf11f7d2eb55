"""Reconstructions of DICOM series as derived series of the same study (PS3.3, C.7.6.1).

A reconstruction shows its patient: it keeps the identity of the patient and of the study, says that it was
compressed with loss, and names its source images. It is written only when it is asked for.

    dicom/series-01-axial/slice-0001.dcm
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float32
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from slicebook.errors import ConfigError
from slicebook.export.dicom import (
    code,
    contributing_equipment,
    file_meta,
    save_dicom,
    set_equipment,
)
from slicebook.io.dicom_file import wrap_pydicom_errors
from slicebook.io.dicom_series import DicomSeries, find_dicom_series
from slicebook.io.nifti import read_nifti
from slicebook.io.volume import Plane

# What a derived image has in common with its source. Free text of the series and private tags are left out.
_KEPT = [
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "BodyPartExamined",
    "PatientPosition",
    "Laterality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "RepetitionTime",
    "EchoTime",
    "EchoTrainLength",
    "InversionTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "ImagingFrequency",
    "EchoNumbers",
    "ImagedNucleus",
    "NumberOfAverages",
    "KVP",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "BurnedInAnnotation",
    "SyntheticData",
]


@dataclass(frozen=True)
class Codec:
    """The model that reconstructed a series.

    Attributes:
        sha256: Hash of its weights.
        bits_per_pixel: Of its tokens.
    """

    sha256: str
    bits_per_pixel: float


def check_derivable(source: Path, plane: Plane | None) -> list[tuple[str, DicomSeries]]:
    """Return the series of a source by the names that `reconstruct` gives them.

    Raises:
        ConfigError: It is not a folder of DICOM, or an image is not MR or CT with one slice per file.
    """
    series = find_dicom_series(source) if source.is_dir() else []
    chosen = [item for item in series if plane in (None, item.plane)]
    if not chosen:
        raise ConfigError(f"{source}: --format dicom needs a folder with DICOM series; choose --format nifti")
    named = [(f"series-{number:02}-{item.plane}", item) for number, item in enumerate(chosen, start=1)]
    for name, item in named:
        with wrap_pydicom_errors(item.files[0]):
            tags = ["SOPClassUID", "PhotometricInterpretation"]
            header = pydicom.dcmread(item.files[0], stop_before_pixels=True, specific_tags=tags)
        classic = len(item.files) == item.frames and header.get("SOPClassUID") in (
            MRImageStorage,
            CTImageStorage,
        )
        if not classic or header.get("PhotometricInterpretation") != "MONOCHROME2":
            raise ConfigError(
                f"{name}: --format dicom writes MR and CT images of one slice per file, MONOCHROME2; choose "
                "--format nifti"
            )
    return named


def write_derived(name: str, series: DicomSeries, out: Path, codec: Codec) -> None:
    """Write the reconstruction `OUT/NAME.nii.gz` of a series as a derived DICOM series.

    Args:
        name: Of the reconstruction.
        series: Its source.
        out: Folder that `reconstruct` wrote.
        codec: The model.

    Raises:
        DataError: A source file cannot be read.
    """
    volume = read_nifti(out / f"{name}.nii.gz")  # array[column, row, slice], as the series was read
    uids = [codec.sha256, series.series_uid, *series.parts]
    for number, path in enumerate(series.files):
        with wrap_pydicom_errors(path):
            source = pydicom.dcmread(path, stop_before_pixels=True)
            image = _derived(source, volume.array[:, :, number].T, codec)
            image.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *uids])
            image.SOPInstanceUID = generate_uid(entropy_srcs=[str(source.SOPInstanceUID), *uids])
            image.file_meta = file_meta(image)
            image.InstanceNumber = number + 1
            save_dicom(image, out / "dicom" / name / f"slice-{number + 1:04}.dcm")


def _derived(source: Dataset, pixels: Float32[np.ndarray, "h w"], codec: Codec) -> Dataset:
    """Return one image without UIDs of its own."""
    image = Dataset()
    image.SOPClassUID = source.SOPClassUID
    for keyword in _KEPT:
        if keyword in source:
            image[keyword] = source[keyword]
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    image.SeriesNumber = int(source.get("SeriesNumber") or 0) + 1000
    image.SeriesDescription = "Slicebook reconstruction (lossy)"
    set_equipment(image, codec.sha256)
    image.LossyImageCompression = "01"
    ratio = float(source.BitsStored) / codec.bits_per_pixel
    image.LossyImageCompressionRatio = f"{ratio:.4g}"
    image.DerivationDescription = (
        f"Encoded and decoded by a learned codec with loss, {codec.bits_per_pixel:.4g} bits per pixel. Not "
        "for diagnosis."
    )
    image.DerivationCodeSequence = [code("113040", "DCM", "Lossy Compression")]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [code("121320", "DCM", "Uncompressed predecessor")]
    image.SourceImageSequence = [reference]
    image.ContributingEquipmentSequence = [
        contributing_equipment(f"Reconstructed by the tokenizer {codec.sha256}", codec.sha256)
    ]
    _set_stored(image, source, pixels)
    return image


def _set_stored(image: Dataset, source: Dataset, pixels: Float32[np.ndarray, "h w"]) -> None:
    """Store intensities with the rescaling of the source, as 16 bits."""
    slope = float(source.get("RescaleSlope") or 1)
    intercept = float(source.get("RescaleIntercept") or 0)
    is_signed = int(source.get("PixelRepresentation") or 0) == 1
    dtype = np.dtype("<i2" if is_signed else "<u2")
    limits = np.iinfo(dtype)
    stored = np.rint((pixels - intercept) / slope).clip(limits.min, limits.max).astype(dtype)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = stored.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(is_signed)
    image.PixelData = stored.tobytes()
    image["PixelData"].VR = "OW"

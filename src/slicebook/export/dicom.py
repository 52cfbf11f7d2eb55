"""A generated set as DICOM: MR images that say that they are synthetic, and segmentations of their masks.

    dicom/sample-000007/slice-0001.dcm      one file per slice, MR Image Storage
    dicom/sample-000007/segmentation.dcm    its mask, if the model generates masks

Every volume is a study of its own, of a patient who does not exist. UIDs follow from the model, the request,
the name and the date of the set: the same set gives the same files.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8, UInt16
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from slicebook.export.generated_set import GeneratedSet, SetFacts, SetItem
from slicebook.export.segmentation import Segment, segmentation_of
from slicebook.io.atomic import write_bytes
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.volume import Orientation, Volume, orientation_of, slice_spacing, to_slices
from slicebook.version import __version__

LARGEST = 4095  # 12 bits, as most scanners store
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_dicom(made: GeneratedSet, out: Path, facts: SetFacts) -> None:
    """Write every volume as an MR series, and its mask as DICOM SEG.

    Intensities are mapped linearly from the range of the set to 0 to 4095, because MR Image Storage has no
    rescaling.

    Raises:
        ConfigError: There are masks, and the extra `dicom` (highdicom) is not installed.
        DataError: A file of the set cannot be read.
    """
    for item in made.items:
        volume = read_nifti(item.image)
        orientation = orientation_of(volume)
        identity = _Identity.of(made, item)
        folder = out / "dicom" / item.name
        slices = _stored(volume, orientation, made)
        images = [
            _image(pixels, number, volume, orientation, identity, facts, made)
            for number, pixels in enumerate(slices)
        ]
        for number, image in enumerate(images, start=1):
            save_dicom(image, folder / f"slice-{number:04}.dcm")
        if item.mask is None:
            continue
        labels: UInt8[np.ndarray, "n h w"] = to_slices(read_labels(item.mask).array, orientation).astype(
            np.uint8
        )
        if labels.any():  # a SEG without a segment is not valid
            segments = [Segment(value, name) for value, name in made.labels.items() if value]
            mask = segmentation_of(images, labels, segments, identity.uid, identity.date)
            save_dicom(mask, folder / "segmentation.dcm")


def save_dicom(dataset: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file, atomically."""
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class _Identity:
    """What UIDs of a volume are made of."""

    model_sha256: str
    request: str
    name: str
    seed: int
    date: datetime

    @classmethod
    def of(cls, made: GeneratedSet, item: SetItem) -> _Identity:
        settings = made.record.get("request") or made.record.get("settings")
        return cls(made.model_sha256, repr(settings), item.name, item.seed, made.date)

    def uid(self, what: str) -> UID:
        parts = (self.model_sha256, self.request, self.name, str(self.seed), self.date.isoformat(), what)
        return generate_uid(entropy_srcs=list(parts))

    @property
    def patient_id(self) -> str:
        return f"SYNTHETIC-{self.uid('patient')[-12:]}"


def _stored(volume: Volume, orientation: Orientation, made: GeneratedSet) -> UInt16[np.ndarray, "n h w"]:
    kind = made.record.get("slices")
    low, high = float(volume.array.min()), float(volume.array.max())
    if isinstance(kind, dict):  # the same scale for the whole set
        low, high = float(kind["low"]), float(kind["high"])
    share = (to_slices(volume.array, orientation) - low) / max(high - low, 1e-12)
    stored: UInt16[np.ndarray, "n h w"] = np.rint(share.clip(0, 1) * LARGEST).astype(np.uint16)
    return stored


def slice_geometry(
    volume: Volume, orientation: Orientation
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
    """Return the steps between columns, rows and slices in display order, and the first pixel's centre.

    Both in LPS mm; the steps are the columns of a matrix.
    """
    affine = _LPS @ volume.affine
    steps, origin = [], affine[:3, 3].copy()
    for axis, flip in zip(orientation.axes, orientation.flips, strict=True):
        step = affine[:3, axis]
        if flip:
            origin += step * (volume.array.shape[axis] - 1)
            step = -step
        steps.append(step)
    slice_step, row_step, column_step = steps
    return np.stack([column_step, row_step, slice_step], axis=1), origin


def set_plane(image: Dataset, volume: Volume, orientation: Orientation, number: int) -> None:
    """Set position, orientation, spacing and thickness of slice `number` in display order."""
    steps, origin = slice_geometry(volume, orientation)
    between, row_mm, column_mm = slice_spacing(volume, orientation)
    image.ImagePositionPatient = [_ds(x) for x in origin + number * steps[:, 2]]
    image.ImageOrientationPatient = [_ds(x) for x in (*(steps[:, 0] / column_mm), *(steps[:, 1] / row_mm))]
    image.PixelSpacing = [_ds(row_mm), _ds(column_mm)]
    image.SliceThickness = _ds(between)
    if volume.array.shape[orientation.axes[0]] > 1:
        image.SpacingBetweenSlices = _ds(between)


def _ds(value: float) -> str:
    """Return a number as DICOM's decimal string of at most 16 characters."""
    for digits in range(14, 5, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text if float(text) else "0"
    raise AssertionError(value)  # six digits always fit


def set_pixels(image: Dataset, pixels: UInt16[np.ndarray, "h w"], bits: int) -> None:
    """Set the pixels of one slice."""
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, bits, bits - 1, 0
    image.PixelData = pixels.astype("<u2").tobytes()
    image["PixelData"].VR = "OW"


def set_equipment(image: Dataset, serial: str) -> None:
    """Set the equipment to this software; `serial` is the hash of the model."""
    image.Manufacturer, image.ManufacturerModelName = "Slicebook", "Slicebook"
    image.SoftwareVersions, image.DeviceSerialNumber = __version__, serial[:64]


def file_meta(image: Dataset) -> FileMetaDataset:
    """Return the file meta information of an uncompressed image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def contributing_equipment(description: str, serial: str) -> Dataset:
    """Return the item of the sequence that names the software that made or changed an image."""
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = "Slicebook", "Slicebook"
    item.SoftwareVersions, item.DeviceSerialNumber = __version__, serial[:64]
    item.ContributionDescription = description[:1024]
    item.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    return item


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a coded concept."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _image(
    pixels: UInt16[np.ndarray, "h w"],
    number: int,
    volume: Volume,
    orientation: Orientation,
    identity: _Identity,
    facts: SetFacts,
    made: GeneratedSet,
) -> Dataset:
    """Return one slice as MR Image Storage (PS3.3, A.4)."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, identity.uid(f"slice {number}")
    image.file_meta = file_meta(image)
    image.SyntheticData = "YES"
    image.PatientName, image.PatientID = "SYNTHETIC^NO PATIENT", identity.patient_id
    image.PatientBirthDate, image.PatientSex = "", ""
    image.PatientIdentityRemoved, image.DeidentificationMethod = "YES", "Synthetic image: no patient exists"
    image.StudyInstanceUID, image.StudyID = identity.uid("study"), str(identity.seed % 10**16)
    image.StudyDate, image.StudyTime = f"{identity.date:%Y%m%d}", f"{identity.date:%H%M%S}"
    image.AccessionNumber, image.ReferringPhysicianName = "", ""
    image.StudyDescription = "Synthetic images"
    image.SeriesInstanceUID, image.SeriesNumber = identity.uid("series"), 1
    image.SeriesDescription, image.Modality = f"SYNTHETIC {facts.contrast} {identity.name}"[:64], "MR"
    image.PatientPosition, image.BodyPartExamined = "HFS", facts.body_part
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = identity.uid("frame of reference"), ""
    set_equipment(image, made.model_sha256)
    image.InstanceNumber = number + 1
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    image.ContentDate, image.ContentTime, image.AcquisitionNumber = "", "", ""
    image.DerivationDescription = (
        "Drawn by a generative model. Intensities are on an arbitrary scale. No patient exists."
    )
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
    image.MRAcquisitionType, image.EchoTrainLength = "2D", None
    image.RepetitionTime, image.EchoTime = None, None
    image.WindowCenter, image.WindowWidth = (LARGEST + 1) // 2, LARGEST + 1
    image.ContributingEquipmentSequence = [
        contributing_equipment(
            f"Drawn by model {identity.model_sha256}, seed {identity.seed}, settings {identity.request}",
            made.model_sha256,
        )
    ]
    set_plane(image, volume, orientation, number)
    set_pixels(image, pixels, 12)
    return image

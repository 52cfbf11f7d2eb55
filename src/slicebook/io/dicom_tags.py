"""DICOM tags: those that are read, traits that separate volumes, and objects that are not images.

A trait distinguishes slices at the same position: an echo time, a b-value, a point in time.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID

from slicebook.errors import DataError

# Fields that may identify the patient, the site or the staff.
PRIVATE_TEXT = (
    *("PatientName", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers", "OtherPatientIDs"),
    *("AccessionNumber", "InstitutionName", "ReferringPhysicianName", "OperatorsName", "PatientComments"),
    *("OtherPatientNames", "PatientBirthName", "InstitutionAddress", "PerformingPhysicianName"),
)

DIRECTORY = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# SOP classes without slices, by UID prefix (PS3.4, B.5).
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OTHER_OBJECTS = {
    DIRECTORY: "DICOMDIR",
    **dict.fromkeys((_STORAGE + "66.4", _STORAGE + "66.5", _STORAGE + "66.7"), "segmentation"),
    **dict.fromkeys((_STORAGE + "66.1", _STORAGE + "66.2", _STORAGE + "66.3"), "registration"),
    **dict.fromkeys((_STORAGE + "66", _STORAGE + "4.2", _STORAGE + "9"), "raw data"),
    **dict.fromkeys((_STORAGE + "88", _STORAGE + "104"), "report"),
    _STORAGE + "481": "radiotherapy",
    _STORAGE + "11": "presentation state",
    _STORAGE + "30": "parametric map",
    _STORAGE + "67": "value mapping",
}


_COLOURS = {"RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"}


def other_object(sop_class: str) -> str | None:
    """Return what an object of this SOP class is, if it has no slices."""
    fitting = [uid for uid in _OTHER_OBJECTS if sop_class == uid or sop_class.startswith(uid + ".")]
    return _OTHER_OBJECTS[max(fitting, key=len)] if fitting else None


@dataclass(frozen=True)
class PassedOver:
    """A DICOM file that is not a slice of a volume.

    Attributes:
        reason: One or two words, for a count.
        message: The error if this file was given by name.
    """

    reason: str
    message: str


def reason_to_pass_over(
    path: Path, dataset: Dataset, image_type: tuple[str, ...], has_pixels: bool
) -> PassedOver | None:
    """Return why a file is not a slice; raise `DataError` if it seems to be a damaged slice."""

    def over(reason: str, message: str = "") -> PassedOver:
        return PassedOver(reason, f"{path}: {message or f'is not an image slice ({reason})'}")

    named = str(dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    sop_class = str(dataset.get("SOPClassUID") or "")
    other = other_object(sop_class or (named if named == DIRECTORY else ""))
    if other is not None:
        return over(other)
    if not sop_class and (named or not len(dataset)):
        raise DataError(f"{path}: its header is cut off or empty; copy or download it again")
    is_image = "Image Storage" in UID(sop_class).name
    located = "PerFrameFunctionalGroupsSequence" in dataset or (
        "ImagePositionPatient" in dataset and "ImageOrientationPatient" in dataset
    )
    if "Rows" not in dataset or "Columns" not in dataset:
        if is_image:
            raise DataError(f"{path}: its header is cut off before Rows; copy or download it again")
        return over("no pixels")
    if not has_pixels:
        if is_image and located:
            raise DataError(f"{path}: has no pixel data, or is cut off before it; copy or export it again")
        return over("no pixels")
    captured = sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + ".")
    if not located and (captured or "ConversionType" in dataset or "SECONDARY" in image_type):
        return over("screen capture")
    kind = str(dataset.get("PhotometricInterpretation") or "").strip()
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        shown = kind if kind in _COLOURS else "of another colour model"
        return over("colour", f"is {shown}, wanted MONOCHROME1 or MONOCHROME2; export the grey original")
    return None


def image_type_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the values of Image Type in upper case."""
    values = dataset.get("ImageType") or ()
    return tuple(str(value).strip().upper() for value in ([values] if isinstance(values, str) else values))


def private_text(dataset: Dataset) -> tuple[str, ...]:
    """Return the keywords of the fields of `PRIVATE_TEXT` that are filled; never their text."""

    def is_filled(keyword: str) -> bool:
        value = dataset.get_item(keyword).value
        return bool(value.strip(b"\0 ") if isinstance(value, bytes) else str(value or "").strip())

    return tuple(keyword for keyword in PRIVATE_TEXT if keyword in dataset and is_filled(keyword))


@dataclass(frozen=True)
class Trait:
    """Something that may differ between slices at the same position.

    Attributes:
        name: Printed where the value is not.
        keyword: In a classic file, which holds one slice.
        groups: (functional group, keyword) in an enhanced file; the first that is present is used.
        text: Format of a number; if empty, its rank among the values of the series is printed.
    """

    name: str
    keyword: str
    groups: tuple[tuple[str, str], ...] = ()
    text: str = ""

    def describe(self, value: Hashable, rank: int) -> str:
        """Return readable text, without free text of the header: strings are given by their rank."""
        if value is None:
            return f"no {self.name}"
        return self.text.format(value) if self.text and isinstance(value, float) else f"{self.name} {rank}"


_DIRECTION = "MRDiffusionSequence.DiffusionGradientDirectionSequence"
# If several traits could separate a series, the first is used.
TRAITS = (
    Trait(
        "image type",
        "ImageType",
        (
            ("MRImageFrameTypeSequence", "FrameType"),
            ("CTImageFrameTypeSequence", "FrameType"),
            ("PETFrameTypeSequence", "FrameType"),
        ),
    ),
    Trait("component", "ComplexImageComponent", (("MRImageFrameTypeSequence", "ComplexImageComponent"),)),
    Trait("echo time", "EchoTime", (("MREchoSequence", "EffectiveEchoTime"),), "TE {:g} ms"),
    Trait("echo", "EchoNumbers", (), "echo {:g}"),
    Trait("b-value", "DiffusionBValue", (("MRDiffusionSequence", "DiffusionBValue"),), "b {:g} s/mm²"),
    Trait("inversion time", "InversionTime", (("MRModifierSequence", "InversionTimes"),), "TI {:g} ms"),
    Trait(
        "flip angle",
        "FlipAngle",
        (("MRTimingAndRelatedParametersSequence", "FlipAngle"),),
        "flip angle {:g}°",
    ),
    Trait("gradient", "DiffusionGradientOrientation", ((_DIRECTION, "DiffusionGradientOrientation"),)),
    Trait(
        "time",
        "TemporalPositionIdentifier",
        (("FrameContentSequence", "TemporalPositionIndex"),),
        "time {:g}",
    ),
    Trait("frame time", "FrameReferenceTime", (("FrameContentSequence", "FrameReferenceTime"),), "{:g} ms"),
    Trait(
        "trigger time",
        "TriggerTime",
        (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),),
        "trigger {:g} ms",
    ),
    Trait("kernel", "ConvolutionKernel", (("CTReconstructionSequence", "ConvolutionKernel"),)),
    Trait("tube voltage", "KVP", (("CTXRayDetailsSequence", "KVP"),), "{:g} kV"),
    Trait(
        "acquisition",
        "AcquisitionNumber",
        (("FrameContentSequence", "FrameAcquisitionNumber"),),
        "acquisition {:g}",
    ),
    Trait("thickness", "SliceThickness", (("PixelMeasuresSequence", "SliceThickness"),), "{:g} mm thick"),
)
DIMENSION = Trait("dimension", "")  # of an enhanced file: its dimension indices that are not positions
FOLDER = Trait("folder", "")
PRIVATE = (  # in private tags, read only if the others separate nothing
    Trait("private b-value", "", (), "b {:g} s/mm²"),
    Trait("private gradient", ""),
    Trait("private component", ""),
)
ALL_TRAITS = {trait.name: trait for trait in (*TRAITS, DIMENSION, FOLDER, *PRIVATE)}

WANTED = [
    tag
    for keyword in (
        *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID"),
        *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ConversionType"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
        *("BitsAllocated", "RescaleSlope", "RescaleIntercept", "DimensionIndexSequence"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *(trait.keyword for trait in TRAITS),
        *PRIVATE_TEXT,
    )
    if (tag := tag_for_keyword(keyword)) is not None
]


def traits_of(
    classic: Dataset, value: Callable[[str, str], Any] | None, dimensions: tuple[int, ...] = ()
) -> dict[str, Hashable]:
    """Return the traits of one slice that are present, by name.

    Args:
        classic: The header of the file.
        value: Of an enhanced file: looks up (functional group, keyword) of this frame.
        dimensions: Which dimension indices of the frame are not positions.
    """
    traits: dict[str, Hashable] = {}
    for trait in TRAITS:
        raw: Any = None
        if value is not None:
            raw = next((v for group in trait.groups if (v := value(*group)) not in (None, "")), None)
        plain = _plain_value(classic.get(trait.keyword) if raw is None else raw)
        if plain is not None:
            traits[trait.name] = plain
    if value is not None and dimensions:
        indices = value("FrameContentSequence", "DimensionIndexValues")
        indices = [indices] if isinstance(indices, int) else list(indices or ())
        if len(indices) > max(dimensions):
            traits[DIMENSION.name] = tuple(int(indices[at]) for at in dimensions)
    return traits


def dimensions_of(dataset: Dataset) -> tuple[int, ...]:
    """Return which dimension indices of an enhanced file are not positions."""
    places = {"ImagePositionPatient", "InStackPositionNumber", "StackID", "ImagePositionVolume"}
    pointers = [item.get("DimensionIndexPointer") for item in dataset.get("DimensionIndexSequence") or ()]
    tags = {tag_for_keyword(keyword) for keyword in places}
    return tuple(
        at for at, pointer in enumerate(pointers) if pointer is not None and int(pointer) not in tags
    )


def private_traits(dataset: Dataset) -> dict[str, Hashable]:
    """Return b-value, gradient and complex component from private tags of Siemens, GE, Philips and UIH."""

    def hidden(group: int, creator: str, element: int) -> Any:
        try:
            return _plain_value(dataset.private_block(group, creator)[element].value)
        except KeyError:
            return None

    b_value = hidden(0x0019, "SIEMENS MR HEADER", 0x0C)
    if b_value is None and isinstance(ge := hidden(0x0043, "GEMS_PARM_01", 0x39), tuple) and ge:
        b_value = ge[0] % 1e5 if isinstance(ge[0], float) else None  # newer scanners add 1e9
    for group, creator, element in (
        (0x2001, "Philips Imaging DD 001", 0x03),
        (0x0065, "Image Private Header", 0x09),
    ):
        b_value = hidden(group, creator, element) if b_value is None else b_value
    directions = (
        hidden(0x0019, "SIEMENS MR HEADER", 0x0E),
        tuple(hidden(0x0019, "GEMS_ACQU_01", element) for element in (0xBB, 0xBC, 0xBD)),
        tuple(hidden(0x2005, "Philips MR Imaging DD 001", element) for element in (0xB0, 0xB1, 0xB2)),
        hidden(0x0065, "Image Private Header", 0x37),
    )
    direction = next((d for d in directions if d not in (None, (None,) * 3)), None)
    # Of GE: real, imaginary or phase; and whether this is the field map or the magnitude beside it.
    components = tuple(hidden(0x0043, "GEMS_PARM_01", element) for element in (0x2F, 0x30))
    traits = (b_value, direction, components if components != (None, None) else None)
    return {trait.name: value for trait, value in zip(PRIVATE, traits, strict=True) if value is not None}


def _plain_value(value: Any) -> Hashable:
    """Return a header's value as a finite number, upper-case text or a tuple of them; None where empty."""
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, str):
        return value.strip().upper() or None
    if isinstance(value, (int, float)) or hasattr(value, "as_integer_ratio"):
        return round(float(value), 3) if math.isfinite(value) else None
    values = tuple(_plain_value(item) for item in value)
    return (values[0] if len(values) == 1 else values) if any(item is not None for item in values) else None

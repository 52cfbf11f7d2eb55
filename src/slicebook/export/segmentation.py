"""Masks as DICOM SEG, by highdicom (the extra `dicom`)."""

# mypy: allow-untyped-calls

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from slicebook.errors import ConfigError
from slicebook.export.label_tables import colour_of
from slicebook.version import __version__

# SNOMED CT codes of names that labels often have; each pattern is searched in the name.
_ANATOMY = (
    (r"prostat", Code("41216001", "SCT", "Prostate")),
    (r"bladder", Code("89837001", "SCT", "Urinary bladder")),
    (r"rectum", Code("34402009", "SCT", "Rectum")),
    (r"bone", Code("272673000", "SCT", "Bone")),
    (r"body", Code("38266002", "SCT", "Entire body")),
    (r"brain", Code("12738006", "SCT", "Brain")),
    (r"liver", Code("10200004", "SCT", "Liver")),
    (r"kidney", Code("64033007", "SCT", "Kidney")),
    (r"spleen", Code("78961009", "SCT", "Spleen")),
    (r"heart", Code("80891009", "SCT", "Heart")),
)
_TISSUE = Code("85756007", "SCT", "Tissue")
_ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")


@dataclass(frozen=True)
class Segment:
    """One label of a mask."""

    value: int
    name: str


def require_highdicom() -> None:
    """Raise `ConfigError` unless highdicom is installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise ConfigError("DICOM SEG needs highdicom; install the extra: pip install 'slicebook[dicom]'")


def code_of(name: str) -> Code:
    """Return the code of a label's anatomy by its name; that of tissue if the name is not known."""
    fitting = (code for pattern, code in _ANATOMY if re.search(pattern, name, re.IGNORECASE))
    return next(fitting, _TISSUE)


def segmentation_of(
    images: Sequence[Dataset],
    labels: UInt8[np.ndarray, "n h w"],
    segments: Sequence[Segment],
    uid: Callable[[str], UID],
    date: datetime,
) -> Dataset:
    """Return masks of slices as a binary DICOM SEG in the series' frame of reference.

    Segments are numbered from 1 in the order given; a segment's label text is its name, and its tracking
    identifier holds its value in the mask.

    Args:
        images: One MR image per slice.
        labels: Label values.
        segments: All labels of the set without the background, so that every file has the same numbers.
        uid: Returns the UID for a purpose.
        date: When the masks were made.

    Raises:
        ConfigError: highdicom is not installed.
    """
    require_highdicom()
    import highdicom as hd

    numbers = np.zeros(256, dtype=np.uint8)
    for number, segment in enumerate(segments, start=1):
        numbers[segment.value] = number
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Slicebook", family=Code("123109", "DCM", "Artificial Intelligence"), version=__version__
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name[:64],
            segmented_property_category=_ANATOMICAL_STRUCTURE,
            segmented_property_type=code_of(segment.name),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=f"label {segment.value}",
            tracking_uid=uid(f"label {segment.value}"),
            display_color=hd.color.CIELabColor.from_rgb(*colour_of(segment.value)),
        )
        for number, segment in enumerate(segments, start=1)
    ]
    first = images[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the empty dates of images that nobody acquired
        mask = hd.seg.Segmentation(
            source_images=list(images),
            pixel_array=numbers[labels],
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=uid("segmentation series"),
            series_number=2,
            sop_instance_uid=uid("segmentation"),
            instance_number=1,
            manufacturer=first.Manufacturer,
            manufacturer_model_name=first.ManufacturerModelName,
            software_versions=__version__,
            device_serial_number=first.DeviceSerialNumber,
            series_description="SYNTHETIC masks",
            content_label="MASKS",
        )
    mask.SyntheticData = "YES"
    _set_dates(mask, date, uid("dimensions"))
    return mask


def _set_dates(mask: Dataset, date: datetime, dimensions: UID) -> None:
    """Replace what highdicom takes from the clock and at random, so that a set gives the same files again."""
    for moment in ("Content", "InstanceCreation", "Series"):
        setattr(mask, f"{moment}Date", f"{date:%Y%m%d}")
        setattr(mask, f"{moment}Time", f"{date:%H%M%S}")
    for item in mask.iterall():
        if item.keyword == "DimensionOrganizationUID":
            item.value = dimensions
        elif item.keyword == "ContributionDateTime":
            item.value = f"{date:%Y%m%d%H%M%S}"

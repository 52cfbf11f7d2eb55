"""What the Python interface takes as an image or a mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from nibabel.spatialimages import SpatialImage

from slicebook.errors import ConfigError, DataError, ShapeError
from slicebook.inference.volumes import Stack, read_single
from slicebook.io.nifti import as_labels, from_nibabel, read_labels
from slicebook.io.volume import Plane, Volume

ImageInput: TypeAlias = str | Path | np.ndarray | SpatialImage | Volume
"""A path of NIfTI or DICOM, an array of slices as displayed, an image of nibabel, or a volume."""
Spacing: TypeAlias = tuple[float, float, float]
"""Distance between slices, rows and columns, in mm."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the work done and all work; what it raises ends the work."""


def to_stack(image: ImageInput, spacing: Spacing | None, plane: Plane | None) -> Stack:
    """Return an image as slices in [-1, 1].

    Raises:
        ConfigError: A spacing was given for what has its own, or a plane for an array.
        DataError: It is not one readable volume of finite real numbers.
        ShapeError: An array has another number of dimensions.
    """
    if isinstance(image, str | Path):
        _refuse_spacing(image, spacing)
        return Stack.of(read_single(image, plane), plane)
    return Stack.of(_in_memory(image, spacing, plane), plane)


def to_labels(mask: ImageInput, spacing: Spacing | None, plane: Plane | None) -> Volume:
    """Return a label mask as a volume of integers from 0 to 255.

    Raises:
        ConfigError: As `to_stack`.
        DataError: A value is not a label, or it is not one readable volume.
        ShapeError: As `to_stack`.
    """
    if isinstance(mask, str | Path):
        _refuse_spacing(mask, spacing)
        return read_labels(mask)
    return as_labels(name_of(mask, "mask"), _in_memory(mask, spacing, plane))


def to_region(mask: ImageInput, stack: Stack) -> Volume:
    """Return a mask of an image; an array has the shape of the image's slices as displayed.

    Raises:
        DataError: A value is not a label.
        ShapeError: An array has another shape.
    """
    if not isinstance(mask, np.ndarray):
        return to_labels(mask, None, None)
    shown = mask[None] if mask.ndim == 2 else mask
    if shown.shape != stack.slices.shape:
        raise ShapeError(
            f"mask: its shape is {mask.shape}, that of the image's slices {stack.slices.shape}; give one "
            "value for each pixel as displayed"
        )
    return as_labels("mask", stack.volume_of_values(shown.astype(np.float32), ""))


def name_of(image: ImageInput, otherwise: str) -> str:
    """Return what a message calls an input: its path, if it is one."""
    return str(image) if isinstance(image, str | Path) else otherwise


def _in_memory(
    image: np.ndarray | SpatialImage | Volume, spacing: Spacing | None, plane: Plane | None
) -> Volume:
    if isinstance(image, np.ndarray):
        if plane is not None:
            raise ConfigError(f"plane {plane}: an array has its own slices, the first axis; leave it out")
        return Volume.from_slices(image, spacing or (1.0, 1.0, 1.0))
    _refuse_spacing("image", spacing)
    if isinstance(image, Volume):
        if plane is not None and image.geometry is None:
            raise ConfigError(f"plane {plane}: a DICOM series or an array has its own slices; leave it out")
        return image
    if isinstance(image, SpatialImage):
        return from_nibabel(image)
    raise DataError(
        f"{type(image).__name__}: wanted a path, an array of slices, an image of nibabel or a Volume"
    )


def _refuse_spacing(name: str | Path, spacing: Spacing | None) -> None:
    if spacing is not None:
        raise ConfigError(f"{name}: has its own spacing; give one with an array alone")

"""Read PNG and TIFF files as volumes: a grey picture is one slice, the pages of a TIFF are its slices.

A picture has no place in a patient, and its pixel size is not reliable: the user says it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageSequence

from slicebook.errors import DataError
from slicebook.io.limits import LIMITS, Limits
from slicebook.io.volume import Volume

_GREY = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L"}


def read_picture(
    path: Path, pixel_mm: tuple[float, float] | None, *, as_labels: bool = False, limits: Limits = LIMITS
) -> Volume:
    """Read the pages of a picture as axial slices, in the order and orientation of the file.

    Args:
        path: PNG or TIFF.
        pixel_mm: Distance between rows and between columns; 1 mm if unknown.
        as_labels: Whether the indices of a palette are the values.
        limits: Limits on memory.

    Raises:
        DataError: The file is damaged or too large, in colour, or its pages differ in size.
    """
    with _opened(path) as image:
        pages = int(getattr(image, "n_frames", 1))
        columns, rows = image.size
        limits.check(path, limits.max_bytes, rows * columns * pages * 4, "")
        slices = [_pixels(path, page, as_labels) for page in ImageSequence.Iterator(image)]
    if len({page.shape for page in slices}) != 1:
        raise DataError(f"{path}: its pages differ in size, wanted one size; save them as separate files")
    stack = np.stack(slices)
    if not np.isfinite(stack).all():
        raise DataError(f"{path}: holds NaN or infinite values; replace them and save again")
    row_mm, column_mm = pixel_mm or (1.0, 1.0)
    affine = np.diag([-column_mm, -row_mm, 1.0, 1.0])  # columns R→L, rows A→P: as slices are displayed
    array = np.asfortranarray(stack.transpose(2, 1, 0))
    return Volume(array, affine, array.shape)


def page_count(path: Path) -> int:
    """Return the number of pages, from the header.

    Raises:
        DataError: The file is damaged.
    """
    with _opened(path) as image:
        return int(getattr(image, "n_frames", 1))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which Limits judges, and of unknown tags
            with Image.open(path) as image:
                yield image
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: is damaged, too large or not a picture ({type(error).__name__}); copy it again"
        ) from error


def _pixels(path: Path, page: Image.Image, as_labels: bool) -> Float32[np.ndarray, "rows columns"]:
    if page.mode in _GREY or (as_labels and page.mode == "P"):
        values: Any = np.asarray(page)
        return np.asarray(values, dtype=np.float32)
    if page.mode == "LA":
        return np.asarray(page, dtype=np.float32)[..., 0]
    colours = np.asarray(page.convert("RGB"))
    if (colours != colours[..., :1]).any():
        what = "save the label numbers as grey values" if as_labels else "convert it to grey"
        raise DataError(f"{path}: is in colour, wanted one grey value per pixel; {what}")
    return np.asarray(colours[..., 0], dtype=np.float32)

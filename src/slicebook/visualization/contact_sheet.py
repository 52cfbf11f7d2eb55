"""Contact sheets: many slices in one PNG, with masks or heatmaps over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.image import imsave
from scipy.ndimage import binary_erosion, zoom

from slicebook.io.atomic import replacing

# Of labels 1, 2, …; label 0 is the background. Distinguishable with colour blindness.
COLOURS = ((86, 180, 233), (240, 228, 66), (0, 158, 115), (213, 94, 0), (204, 121, 167), (230, 159, 0))
OPACITY = 0.45
WIDE = 0.25  # share of a slice from which a label is drawn as an outline
GAP = 2  # dark pixels between pictures


def gray(image: Float[np.ndarray, "h w"], aspect: float = 1.0) -> UInt8[np.ndarray, "rows w 3"]:
    """Return a slice in [-1, 1] as pixels; `aspect` is the height of a pixel over its width."""
    rows = max(1, round(image.shape[0] * aspect))
    if rows != image.shape[0]:
        image = zoom(image, (rows / image.shape[0], 1), order=1, grid_mode=True, mode="nearest")
    level = ((image.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    pixels: UInt8[np.ndarray, "rows w 3"] = np.repeat(level[..., None], 3, axis=2)
    return pixels


def tinted(
    image: Float[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"], aspect: float = 1.0
) -> UInt8[np.ndarray, "rows w 3"]:
    """Return a slice with its mask over it, one colour per label; label 0 stays gray.

    A label of more than a quarter of the slice would hide the image, so only the mask's outline is coloured.
    """
    pixels = gray(image, aspect).astype(np.float32)
    rows = (np.arange(len(pixels)) / aspect).astype(int).clip(max=len(mask) - 1)
    labels = mask[rows]
    table = np.array([(0, 0, 0), *(COLOURS[i % len(COLOURS)] for i in range(255))], dtype=np.float32)
    wide = np.bincount(mask.ravel(), minlength=256) > WIDE * mask.size
    weight = np.where((labels > 0) & ~(wide[labels] & binary_erosion(labels > 0)), OPACITY, 0.0)[..., None]
    mixed: UInt8[np.ndarray, "rows w 3"] = (
        ((1 - weight) * pixels + weight * table[labels]).round().astype(np.uint8)
    )
    return mixed


def hot(
    image: Float[np.ndarray, "h w"], heat: Float[np.ndarray, "h w"], aspect: float = 1.0
) -> UInt8[np.ndarray, "rows w 3"]:
    """Return a slice with a heatmap in [0, 1] over it in red."""
    pixels, over = gray(image, aspect).astype(np.float32), gray(2 * heat - 1, aspect)[..., :1] / 255.0
    red = np.array([255.0, 60.0, 0.0], dtype=np.float32)
    return ((1 - 0.8 * over) * pixels + 0.8 * over * red).round().astype(np.uint8)


def write_sheet(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], path: Path, *, columns: int | None = None
) -> None:
    """Write pictures row by row as one PNG, each at its own pixels."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = max(len(picture) for picture in pictures)
    wide = max(picture.shape[1] for picture in pictures)
    lines = -(-len(pictures) // columns)
    page = np.zeros((lines * (rows + GAP) - GAP, columns * (wide + GAP) - GAP, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (rows + GAP), index % columns * (wide + GAP)
        page[top : top + len(picture), left : left + picture.shape[1]] = picture
    with replacing(path) as partial:
        imsave(partial, page, format="png")

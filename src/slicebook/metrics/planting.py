"""Copies of slices such as a generator that memorises would make, for a test that has to find them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.neighbours import SHIFT

Images = Float32[np.ndarray, "n h w"]
Reconstruct = Callable[[Images], Images]
"""From slices to what a tokenizer leaves of them."""


@dataclass(frozen=True)
class Planted:
    """Copies of slices.

    Attributes:
        images: The copies.
        sources: Which slice each was made of.
        mirror, shift: What was done to it first: mirrored, then moved down and right (pixels).
    """

    images: Float32[np.ndarray, "n h w"]
    sources: Int64[np.ndarray, " n"]
    mirror: Bool[np.ndarray, " n"]
    shift: Int64[np.ndarray, "n 2"]


def plant(
    sources: Float32[np.ndarray, "k h w"],
    count: int,
    reconstruct: Reconstruct,
    generator: np.random.Generator,
) -> Planted:
    """Make copies of slices drawn without repetition: half mirrored, half moved, all through a tokenizer.

    The two halves are drawn apart, so that a quarter is as it was. A move is by whole pixels, up to 6 % of
    each side; from outside comes the edge, repeated.

    Raises:
        DataError: There are fewer slices than copies wanted.
        ShapeError: The tokenizer changes the size of slices.
    """
    if not 0 < count <= len(sources):
        raise DataError(f"{count} copies of {len(sources)} slices, wanted at least 1 and a slice for each")
    chosen = generator.choice(len(sources), count, replace=False)
    mirror = generator.random(count) < 0.5
    most = np.array([int(SHIFT * side) for side in sources.shape[1:]])
    shift = generator.integers(-most, most + 1, size=(count, 2)) * (generator.random((count, 1)) < 0.5)
    placed = np.empty((count, *sources.shape[1:]), np.float32)
    for at, (down, right) in enumerate(shift.tolist()):
        placed[at] = move(sources[chosen[at]], bool(mirror[at]), (down, right))
    copies = reconstruct(placed)
    if copies.shape != placed.shape:
        raise ShapeError(
            f"the tokenizer made {copies.shape} of copies of {placed.shape}; crop them back to their size"
        )
    return Planted(copies, chosen, mirror, shift)


def move(
    image: Float32[np.ndarray, "h w"], mirror: bool, shift: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Return a slice mirrored or not, then moved down and right by whole pixels, its edge repeated."""
    turned = image[:, ::-1] if mirror else image
    rows, columns = (
        np.clip(np.arange(side) - by, 0, side - 1) for side, by in zip(image.shape, shift, strict=True)
    )
    return np.asarray(turned[rows][:, columns])

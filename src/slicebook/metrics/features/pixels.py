"""Block means of slices: where organs lie and how bright they are, without surfaces and noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64

STRUCTURE, PIXELS = 8, 2  # sides of the blocks that evaluations use
CONVENTION = "Means of blocks of {side}×{side} pixels of slices in [0, 1]"


def block_means(images: Float32[np.ndarray, "n h w"], side: int) -> Float64[np.ndarray, "n f"]:
    """Return the mean of each block of `side` × `side` pixels, flattened; rests at the edges are left out.

    Args:
        images: Slices in [0, 1].
        side: Of a block, in pixels; smaller for slices smaller than it.
    """
    count, rows, columns = images.shape
    down, right = min(side, rows), min(side, columns)
    kept = images[:, : rows // down * down, : columns // right * right].astype(np.float64)
    blocks = kept.reshape(count, rows // down, down, columns // right, right)
    means: Float64[np.ndarray, "n f"] = blocks.mean((2, 4)).reshape(count, -1)
    return means

"""What a measure asks of slices before it looks at them."""

import numpy as np
from jaxtyping import Float32

from slicebook.errors import DataError, ShapeError

_ROUNDING = 1e-4  # this far outside [0, 1] is not worth a refusal


def check_slices(images: Float32[np.ndarray, "n h w"], measure: str, smallest_side: int = 1) -> None:
    """Refuse slices that a measure would turn into numbers without a meaning.

    Args:
        images: Slices, wanted in [0, 1].
        measure: What is about to look at them, for the message.
        smallest_side: In pixels.

    Raises:
        DataError: A value is not finite or outside [0, 1]; the slice is named by its number.
        ShapeError: A side is too short.
    """
    rows, columns = images.shape[1:]
    if min(rows, columns) < smallest_side:
        raise ShapeError(
            f"slices are {rows}×{columns}, {measure} wants sides of at least {smallest_side} pixels; "
            "prepare the data with a larger --size"
        )
    for index, image in enumerate(images):
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinities show in the extremes
            raise DataError(
                f"slice {index} has values that are not finite; its {measure} would mean nothing. Leave it "
                "out, and find what wrote it"
            )
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise DataError(
                f"slice {index} spans {low:.4g} to {high:.4g}, wanted [0, 1]; map a prepared slice x by "
                "(x + 1) / 2, and clip a generated one"
            )

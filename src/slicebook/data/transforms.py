"""Map intensities to [-1, 1] and back; resample, crop and pad slices."""

# mypy: allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped
from skimage.transform import resize


@dataclass(frozen=True)
class IntensityMap:
    """A linear map between a volume's intensities and [-1, 1].

    Attributes:
        low, high: Intensities mapped to -1 and 1; values outside are clipped.
    """

    low: float
    high: float

    @classmethod
    def fit(
        cls, array: Float32[np.ndarray, "*shape"], percentiles: tuple[float, float] = (0.5, 99.5)
    ) -> IntensityMap:
        """Fit to two percentiles of a volume, or to its minimum and maximum if the percentiles are equal."""
        low, high = (float(value) for value in np.percentile(array, percentiles))
        if not low < high:
            low, high = float(array.min()), float(array.max())
        return cls(low, high if low < high else low + 1)

    def forward(self, array: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Map intensities to [-1, 1]."""
        unit = (array.astype(np.float64) - self.low) / (self.high - self.low)
        return (2 * unit - 1).clip(-1, 1).astype(np.float32)

    def inverse(self, array: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Map [-1, 1] back to intensities. Clipped values are not restored."""
        unit = (array.astype(np.float64) + 1) / 2
        return (unit * (self.high - self.low) + self.low).astype(np.float32)


def resample(
    image: Shaped[np.ndarray, "rows columns"], shape: tuple[int, int]
) -> Shaped[np.ndarray, "new_rows new_columns"]:
    """Resample a slice to a shape over the same field of view.

    Images (float32) use cubic interpolation, after Gaussian anti-aliasing if pixels get larger. Masks (uint8)
    use nearest-neighbour interpolation.
    """
    if image.shape == shape:
        return image
    if image.dtype == np.uint8:
        nearest = resize(image, shape, order=0, anti_aliasing=False, preserve_range=True)
        return np.asarray(nearest, np.uint8)
    cubic = resize(image, shape, order=3, mode="edge", anti_aliasing=True, preserve_range=True)
    return np.asarray(cubic, np.float32)


def crop_or_pad(
    image: Shaped[np.ndarray, "rows columns"], size: tuple[int, int], fill: int
) -> Shaped[np.ndarray, "new_rows new_columns"]:
    """Crop or pad a slice around its centre. An odd remainder is removed or added at the end."""
    for axis, wanted in enumerate(size):
        length = image.shape[axis]
        start = max(length - wanted, 0) // 2
        image = image.take(range(start, min(start + wanted, length)), axis=axis)
        before = max(wanted - length, 0) // 2
        padding = [(0, 0), (0, 0)]
        padding[axis] = (before, wanted - image.shape[axis] - before)
        image = np.pad(image, padding, constant_values=fill)
    return image

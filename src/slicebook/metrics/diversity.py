"""Diversity of generated slices, compared with that of real slices of different patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.image_quality import check_slices
from slicebook.metrics.statistics import CONFIDENCE, check_patients

PAIRS = 500
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
SMALLEST_SIDE = 11  # pixels: the window

_SIGMA, _TRUNCATE = 1.5, 3.5  # of the window: 11 pixels, as in the SSIM of record
_BORDER = SMALLEST_SIDE // 2
_C1, _C2 = 0.01**2, 0.03**2  # for data_range 1
_SLICES = 1000  # of a larger set, as many at random are paired


@dataclass(frozen=True)
class Diversity:
    """How alike slices are within a set.

    Attributes:
        convention: What it is.
        generated, real: Mean over pairs, of generated slices and of real slices of different patients; less
            is more diverse, and 1 is one slice over and over.
        generated_interval, real_interval: Of these, 95 %, by slice and by patient; None with fewer than 3.
        generated_pairs, real_pairs: How many.
    """

    convention: str
    generated: float
    generated_interval: tuple[float, float] | None
    generated_pairs: int
    real: float
    real_interval: tuple[float, float] | None
    real_pairs: int


def compare_diversity(
    generated: Float32[np.ndarray, "m h w"],
    real: Float32[np.ndarray, "n _ _"],
    patients: Sequence[str],
    *,
    seed: int,
    pairs: int = PAIRS,
) -> Diversity:
    """Compare the likeness of random pairs of generated slices with that of slices of different patients.

    Two slices of one patient are alike without a fault of anybody: only pairs of different patients say how
    alike slices may be. Intervals are the jackknife's, one patient (or generated slice) left out with all
    their pairs (Arvesen 1969, for means over pairs), times Student's t.

    Args:
        generated: Generated slices in [0, 1], independent of each other.
        real: Slices of patients that were never trained on, of the same shape.
        patients: The patient of each.
        seed: Seeds the one generator used.
        pairs: At most so many in each set; all there are, where there are fewer.

    Raises:
        DataError: A value is not finite or outside [0, 1]; there are fewer than 2 generated slices or
            patients.
        ShapeError: The slices differ in shape or have a side under 11 pixels, or there is not a patient a
            slice.
    """
    if generated.shape[1:] != real.shape[1:]:
        sizes = [f"{one.shape[1]}×{one.shape[2]}" for one in (generated, real)]
        raise ShapeError(
            f"generated slices are {sizes[0]}, real ones {sizes[1]}, and larger slices are less alike; "
            "compare slices of one size"
        )
    check_patients(real, patients)
    generator = np.random.default_rng(seed)
    whose = [str(index) for index in range(len(generated))]
    count, mean, interval = _likeness(generated, whose, "generated slices", pairs, generator)
    real_count, real_mean, real_interval = _likeness(real, patients, "held-out patients", pairs, generator)
    return Diversity(
        convention=convention(scales(*real.shape[1:])),
        generated=mean,
        generated_interval=interval,
        generated_pairs=count,
        real=real_mean,
        real_interval=real_interval,
        real_pairs=real_count,
    )


def convention(count: int) -> str:
    """Say what the likeness of a pair is, at a number of scales."""
    return (
        f"MS-SSIM (Wang et al. 2003) of {count} scales with the first {count} of its weights, scaled to sum "
        "to 1; on [0, 1] with the Gaussian window of the SSIM of record, data_range=1, each scale the mean "
        "of 2×2 pixels of the finer one; a negative mean at a scale counts as 0; whole slice, background "
        "included. Mean over pairs; less is more diverse."
    )


def scales(rows: int, columns: int) -> int:
    """Return how many scales MS-SSIM has: up to five, as many as leave the smaller side 11 pixels."""
    return sum(min(rows, columns) >> scale >= SMALLEST_SIDE for scale in range(len(WEIGHTS)))


def ms_ssim(x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]) -> float:
    """Return the multi-scale structural similarity of two slices in [0, 1] (Wang et al. 2003, eq. 7).

    Contrast and structure count at every scale, luminance at the coarsest alone. 1 for a slice and itself,
    blank ones too; 0 where they contradict each other at some scale. `convention` says the rest.
    """
    count = scales(*x.shape)
    weights = np.array(WEIGHTS[:count]) / sum(WEIGHTS[:count])
    first, second = x.astype(np.float64), y.astype(np.float64)
    similarity = 1.0
    for scale, weight in enumerate(weights.tolist()):
        if scale:
            first, second = _half(first), _half(second)
        similarity *= max(0.0, _similarity(first, second, luminance=scale == count - 1)) ** weight
    return similarity


def _similarity(x: Float64[np.ndarray, "h w"], y: Float64[np.ndarray, "h w"], luminance: bool) -> float:
    """Return the mean SSIM (Wang et al. 2004, eq. 13), or that of its contrast and structure alone."""
    x_mean, y_mean = _window(x), _window(y)
    product, squares = x_mean * y_mean, x_mean**2 + y_mean**2
    covariance = _window(x * y) - product
    variances = _window(x * x + y * y) - squares  # of both, which are only ever added
    similarity = (2 * covariance + _C2) / (variances + _C2)
    if luminance:
        similarity = similarity * (2 * product + _C1) / (squares + _C1)
    return float(similarity.mean())


def _window(values: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "g v"]:
    """Return the local means, where the window lies within the slice."""
    smooth = gaussian_filter(values, _SIGMA, truncate=_TRUNCATE)
    return np.asarray(smooth[_BORDER:-_BORDER, _BORDER:-_BORDER])


def _half(image: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "g v"]:
    rows, columns = (side // 2 for side in image.shape)
    blocks = image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _likeness(
    images: Float32[np.ndarray, "n h w"],
    whose: Sequence[str],
    of: str,
    most: int,
    generator: np.random.Generator,
) -> tuple[int, float, tuple[float, float] | None]:
    """Return how many pairs there are, their mean, and its interval by whose slices they are."""
    check_slices(images, "MS-SSIM", SMALLEST_SIDE)
    _, names = np.unique(np.asarray(whose), return_inverse=True)
    first, second = _draw_pairs(names, most, generator)
    if not len(first):
        raise DataError(
            f"{len(images)} slices of {len(set(whose))} {of}, wanted at least 2 of them and 1 pair; generate "
            "or hold out more"
        )
    values = np.array([ms_ssim(images[i], images[j]) for i, j in zip(first, second, strict=True)])
    return len(values), float(values.mean()), _interval(values, names[first], names[second])


def _draw_pairs(
    names: Int64[np.ndarray, " n"], most: int, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Return pairs of slices of different names, none twice."""
    chosen = generator.permutation(len(names))[:_SLICES]
    first, second = (chosen[side] for side in np.triu_indices(len(chosen), 1))
    apart = np.flatnonzero(names[first] != names[second])
    taken = generator.permutation(apart)[:most]
    return first[taken], second[taken]


def _interval(
    values: Float64[np.ndarray, " p"], first: Int64[np.ndarray, " p"], second: Int64[np.ndarray, " p"]
) -> tuple[float, float] | None:
    units = np.union1d(first, second)
    left = [values[(first != unit) & (second != unit)] for unit in units]
    if len(units) < 3 or not all(len(values_left) for values_left in left):
        return None
    means = np.array([values_left.mean() for values_left in left])
    error = np.sqrt((len(units) - 1) * means.var())
    reach = float(error * student.ppf((1 + CONFIDENCE) / 2, len(units) - 1))
    return float(values.mean()) - reach, min(1.0, float(values.mean()) + reach)

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
_MAX_SLICES = 1000  # a larger set is subsampled before pairs are drawn


@dataclass(frozen=True)
class Diversity:
    """Mean similarity of pairs of slices within a set; lower is more diverse.

    Attributes:
        convention: Definition of the similarity.
        generated, real: Mean over pairs of generated slices, and over pairs of real slices of different
            patients; 1 if all slices are identical.
        generated_interval, real_interval: 95 % intervals of these, by slice and by patient; None with fewer
            than 3 slices or patients.
        generated_pairs, real_pairs: Numbers of pairs.
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
    """Compare the mean MS-SSIM of random pairs of generated slices and of real slices.

    Real pairs are of different patients, because slices of one patient are similar by nature. Intervals are
    mean ± t · jackknife standard error, leaving out one patient (or generated slice) with all its pairs
    (Arvesen 1969, for means over pairs), with t the quantile of Student's t.

    Args:
        generated: Generated slices in [0, 1], independent of each other.
        real: Slices of patients that were never trained on, of the same shape.
        patients: Patient of each real slice.
        seed: Seed of the random pairs.
        pairs: Largest number of pairs per set.

    Raises:
        DataError: A value is not finite or outside [0, 1]; there are fewer than 2 generated slices or
            patients.
        ShapeError: The slices differ in shape or have a side under 11 pixels, or the numbers of real slices
            and patients differ.
    """
    if generated.shape[1:] != real.shape[1:]:
        sizes = [f"{images.shape[1]}×{images.shape[2]}" for images in (generated, real)]
        raise ShapeError(
            f"generated slices are {sizes[0]}, real ones {sizes[1]}, and MS-SSIM depends on the size; "
            "compare slices of one size"
        )
    check_patients(real, patients)
    generator = np.random.default_rng(seed)
    sample_names = [str(index) for index in range(len(generated))]
    count, mean, interval = _mean_similarity(generated, sample_names, "generated slices", pairs, generator)
    real_count, real_mean, real_interval = _mean_similarity(
        real, patients, "held-out patients", pairs, generator
    )
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
    """Return the definition of the similarity of a pair, at a number of scales."""
    return (
        f"MS-SSIM (Wang et al. 2003) of {count} scales with the first {count} of its weights, scaled to sum "
        "to 1; on [0, 1] with the Gaussian window of the SSIM of record, data_range=1, each scale the mean "
        "of 2×2 pixels of the finer one; a negative mean at a scale is set to 0; whole slice, background "
        "included. Mean over pairs; lower is more diverse."
    )


def scales(rows: int, columns: int) -> int:
    """Return the number of scales of MS-SSIM: up to 5, each with at least 11 pixels at its smaller side."""
    return sum(min(rows, columns) >> scale >= SMALLEST_SIDE for scale in range(len(WEIGHTS)))


def ms_ssim(x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]) -> float:
    """Return the multi-scale structural similarity of two slices in [0, 1] (Wang et al. 2003, eq. 7).

    Contrast and structure are compared at every scale, luminance at the coarsest only. In [0, 1]: 1 for two
    identical slices, also blank ones; 0 if the mean structure term is negative at a scale. See `convention`.
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
    """Return the mean SSIM (Wang et al. 2004, eq. 13), or only its contrast and structure term."""
    x_mean, y_mean = _window(x), _window(y)
    product, squares = x_mean * y_mean, x_mean**2 + y_mean**2
    covariance = _window(x * y) - product
    variances = _window(x * x + y * y) - squares  # their sum, which is all that is needed
    similarity = (2 * covariance + _C2) / (variances + _C2)
    if luminance:
        similarity = similarity * (2 * product + _C1) / (squares + _C1)
    return float(similarity.mean())


def _window(values: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "g v"]:
    """Return the local means at pixels where the window lies within the slice."""
    smooth = gaussian_filter(values, _SIGMA, truncate=_TRUNCATE)
    return np.asarray(smooth[_BORDER:-_BORDER, _BORDER:-_BORDER])


def _half(image: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "g v"]:
    rows, columns = (side // 2 for side in image.shape)
    blocks = image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _mean_similarity(
    images: Float32[np.ndarray, "n h w"],
    units: Sequence[str],
    kind: str,
    pairs: int,
    generator: np.random.Generator,
) -> tuple[int, float, tuple[float, float] | None]:
    """Return the number of pairs, their mean similarity, and its interval.

    Args:
        images: Slices in [0, 1].
        units: Patient (or sample) of each slice; pairs are of different units.
        kind: What the units are, for the message.
        pairs: Largest number of pairs.
        generator: Source of all random choices.
    """
    check_slices(images, "MS-SSIM", SMALLEST_SIDE)
    _, names = np.unique(np.asarray(units), return_inverse=True)
    first, second = _draw_pairs(names, pairs, generator)
    if not len(first):
        raise DataError(
            f"{len(images)} slices of {len(set(units))} {kind}, wanted at least 2 of them and 1 pair; "
            "generate or hold out more"
        )
    values = np.array([ms_ssim(images[i], images[j]) for i, j in zip(first, second, strict=True)])
    return len(values), float(values.mean()), _interval(values, names[first], names[second])


def _draw_pairs(
    names: Int64[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Return up to `count` distinct pairs of slices of different names."""
    chosen = generator.permutation(len(names))[:_MAX_SLICES]
    first, second = (chosen[index] for index in np.triu_indices(len(chosen), 1))
    different = np.flatnonzero(names[first] != names[second])
    drawn = generator.permutation(different)[:count]
    return first[drawn], second[drawn]


def _interval(
    values: Float64[np.ndarray, " p"], first: Int64[np.ndarray, " p"], second: Int64[np.ndarray, " p"]
) -> tuple[float, float] | None:
    """Return the jackknife interval of the mean over pairs, leaving out one unit at a time."""
    units = np.union1d(first, second)
    remaining = [values[(first != unit) & (second != unit)] for unit in units]
    if len(units) < 3 or not all(map(len, remaining)):
        return None
    means = np.array([kept.mean() for kept in remaining])
    error = np.sqrt((len(units) - 1) * means.var())
    margin = float(error * student.ppf((1 + CONFIDENCE) / 2, len(units) - 1))
    return float(values.mean()) - margin, min(1.0, float(values.mean()) + margin)

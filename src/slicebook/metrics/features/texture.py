"""Texture features of a slice without learnt weights: intensity statistics, LoG responses, co-occurrence."""

# mypy: allow-untyped-calls
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.fft import dctn, idctn
from skimage.feature import graycomatrix

from slicebook.metrics.image_quality import check_slices

SIGMAS = (2, 3, 4, 5)  # pixels, of the Laplacian of Gaussian
DISTANCES = (1, 2, 4)  # pixels between the two of a pair in the co-occurrence matrix
LEVELS = 32  # grey levels of histograms and co-occurrence: equal steps of a fixed range
PERCENTILES = (10, 25, 50, 75, 90)
SMALLEST_SIDE = 8  # pixels; pairs lie up to 4 apart

_FIRST_ORDER = ("mean", "std", "skewness", "kurtosis", "energy", "entropy")
_RESPONSE = ("magnitude", "std", "skewness", "kurtosis", "entropy")
_PAIRS = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_ANGLES = tuple(np.deg2rad((0, 45, 90, 135)))
_LOG_RANGE = 0.5  # a response of the LoG beyond about ±0.5 counts in the outermost level; 0 amid a level
_FLAT = 1e-12  # a standard deviation under this is rounding

FEATURE_NAMES: tuple[str, ...] = (
    *(f"intensity_{name}" for name in _FIRST_ORDER),
    *(f"intensity_p{percent}" for percent in PERCENTILES),
    *(f"log{sigma}_{name}" for sigma in SIGMAS for name in _RESPONSE),
    *(f"glcm{distance}_{name}" for distance in DISTANCES for name in _PAIRS),
)
"""What each column of `texture_features` is, in order."""

CONVENTION = (
    f"{len(FEATURE_NAMES)} texture features of the whole slice in [0, 1], no learnt weights: first-order "
    "statistics; scale-normalised Laplacian of Gaussian at sigma 2, 3, 4 and 5 pixels, edges mirrored; "
    "co-occurrence of 32 grey levels at 1, 2 and 4 pixels, mean of four directions"
)


def texture_features(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n f"]:
    """Describe each slice by the features that `FEATURE_NAMES` names.

    All are of the whole slice, background included, and in pixels: compare only slices of one shape and
    pixel size.

    `intensity`: mean, standard deviation, skewness, excess kurtosis, energy (mean square), entropy (bits, 32
    levels of [0, 1]) and percentiles. `log<sigma>`: the same of the response to sigma² times the Laplacian of
    a Gaussian (Lindeberg 1998, Int J Comput Vis 30:79), the slice mirrored at its edges; its mean is 0 by
    construction, so `magnitude` (mean absolute value) stands in its place, and its energy is std².
    `glcm<d>`: properties of the symmetric co-occurrence matrix of 32 levels at distance d (Haralick et al.
    1973; contrast to correlation as in scikit-image's `graycoprops`, entropy in bits), averaged over four
    directions.

    A slice of one value v, blank ones included, has mean, every percentile v, and energy v²; every std,
    magnitude, skewness, kurtosis, entropy, contrast and dissimilarity is 0; homogeneity, energy and
    correlation of the co-occurrence are 1.

    Args:
        images: Slices in [0, 1]. Clip a generated slice first.

    Raises:
        DataError: A value is not finite or outside [0, 1].
        ShapeError: A side is shorter than 8 pixels.
    """
    check_slices(images, "texture", SMALLEST_SIDE)
    features = np.empty((len(images), len(FEATURE_NAMES)))
    for index, image in enumerate(images):
        features[index] = _features(np.clip(image.astype(np.float64), 0, 1))
    return features


def _features(image: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, " f"]:
    levels = _levels(image)
    features = [*_moments(image), float(np.mean(image**2)), _entropy(levels)]
    features.extend(np.percentile(image, PERCENTILES))
    spectrum = dctn(image, norm="ortho")
    for transfer in _transfers(image.shape):
        response = idctn(spectrum * transfer, norm="ortho")
        _, std, skewness, kurtosis = _moments(response)
        magnitude = float(np.mean(np.abs(response))) if std else 0.0  # of a flat slice it is rounding
        # Half a level up: on an edge, the 0 of a background would fall to either side by rounding.
        entropy = _entropy(_levels(response / (2 * _LOG_RANGE) + 0.5 + 0.5 / LEVELS))
        features += [magnitude, std, skewness, kurtosis, entropy]
    for distance in DISTANCES:
        matrices = [_cooccurrence(levels, distance, angle) for angle in _ANGLES]
        features.extend(np.mean([_pair_properties(matrix) for matrix in matrices], axis=0))
    return np.array(features)


def _moments(values: Float64[np.ndarray, "h w"]) -> list[float]:
    """Return mean, standard deviation, skewness and excess kurtosis; the last three 0 for a flat slice."""
    mean = float(values.mean())
    centred = values - mean
    squares = centred * centred
    variance = float(squares.mean())
    if variance < _FLAT**2:
        return [mean, 0.0, 0.0, 0.0]
    third, fourth = float((squares * centred).mean()), float((squares * squares).mean())
    return [mean, variance**0.5, third / variance**1.5, fourth / variance**2 - 3]


def _levels(values: Float64[np.ndarray, "h w"]) -> Int64[np.ndarray, "h w"]:
    """Return the level of each value of [0, 1]; 1 and more belong to the highest."""
    return np.clip((values * LEVELS).astype(np.int64), 0, LEVELS - 1)


def _entropy(levels: Int64[np.ndarray, "h w"]) -> float:
    shares = np.bincount(levels.ravel()) / levels.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0 turns -0 into 0


@lru_cache(maxsize=8)
def _transfers(shape: tuple[int, int]) -> tuple[Float64[np.ndarray, "h w"], ...]:
    """Return, per sigma, the filter in the domain of the cosine transform.

    The DCT-II continues a slice by mirroring it at its edges, and a symmetric filter is a product there: one
    transform serves every sigma, at a third of the time of four convolutions.
    """
    down, across = (np.pi * np.arange(side) / side for side in shape)
    squared = down[:, None] ** 2 + across[None, :] ** 2
    return tuple(-(sigma**2) * squared * np.exp(-(sigma**2) * squared / 2) for sigma in SIGMAS)


def _cooccurrence(
    levels: Int64[np.ndarray, "h w"], distance: int, angle: float
) -> Float64[np.ndarray, "levels levels"]:
    """Return the symmetric co-occurrence matrix at an offset, summing to 1.

    The offset is `distance` pixels along each axis that the angle has a part in: `graycomatrix` rounds the
    components of a radius, so a diagonal needs √2 times the distance.
    """
    radius = distance / max(abs(np.cos(angle)), abs(np.sin(angle)))
    matrices = graycomatrix(
        levels.astype(np.uint8), [radius], [angle], levels=LEVELS, symmetric=True, normed=True
    )
    return np.asarray(matrices[:, :, 0, 0])


_ROW, _COLUMN = np.mgrid[:LEVELS, :LEVELS].astype(np.float64)
_WEIGHTS = np.stack(  # what contrast, dissimilarity and homogeneity multiply the matrix by
    [(_ROW - _COLUMN) ** 2, np.abs(_ROW - _COLUMN), 1 / (1 + (_ROW - _COLUMN) ** 2)]
).reshape(3, -1)
_SCALE = np.arange(LEVELS, dtype=np.float64)


def _pair_properties(matrix: Float64[np.ndarray, "levels levels"]) -> list[float]:
    """Return the properties of one co-occurrence matrix, in the order of `_PAIRS`."""
    contrast, dissimilarity, homogeneity = (_WEIGHTS @ matrix.ravel()).tolist()
    one_side = matrix.sum(axis=0)  # the matrix is symmetric: both sides have this mean and variance
    mean = float(one_side @ _SCALE)
    variance = float(one_side @ (_SCALE - mean) ** 2)
    together = float((_SCALE - mean) @ matrix @ (_SCALE - mean))
    shares = matrix[matrix > 0]
    return [
        contrast,
        dissimilarity,
        homogeneity,
        float(np.sqrt((shares**2).sum())),
        together / variance if variance > _FLAT else 1.0,
        float(-(shares * np.log2(shares)).sum()) + 0.0,
    ]

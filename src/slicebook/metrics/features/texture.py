"""Texture features of a slice, without learnt weights: intensity statistics, LoG responses, co-occurrence."""

# mypy: allow-untyped-calls
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.fft import dctn, idctn
from skimage.feature import graycomatrix

from slicebook.metrics.image_quality import check_slices

SIGMAS = (2, 3, 4, 5)  # pixels, of the Laplacian of Gaussian
DISTANCES = (1, 2, 4)  # pixels, of the co-occurrence matrices
LEVELS = 32  # grey levels of histograms and co-occurrence matrices, equally spaced over a fixed range
PERCENTILES = (10, 25, 50, 75, 90)
SMALLEST_SIDE = 8  # pixels

_FIRST_ORDER = ("mean", "std", "skewness", "kurtosis", "energy", "entropy")
_RESPONSE = ("magnitude", "std", "skewness", "kurtosis", "entropy")
_PAIRS = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_ANGLES = tuple(np.deg2rad((0, 45, 90, 135)))
_LOG_RANGE = 0.5  # LoG responses beyond about ±0.5 are in the outermost levels; 0 is the middle of a level
_FLAT = 1e-12  # a standard deviation below this is rounding

FEATURE_NAMES: tuple[str, ...] = (
    *(f"intensity_{name}" for name in _FIRST_ORDER),
    *(f"intensity_p{percent}" for percent in PERCENTILES),
    *(f"log{sigma}_{name}" for sigma in SIGMAS for name in _RESPONSE),
    *(f"glcm{distance}_{name}" for distance in DISTANCES for name in _PAIRS),
)
"""Names of the columns of `texture_features`, in order."""

CONVENTION = (
    f"{len(FEATURE_NAMES)} texture features of the whole slice in [0, 1], no learnt weights: first-order "
    "statistics; scale-normalised Laplacian of Gaussian at sigma 2, 3, 4 and 5 pixels, edges mirrored; "
    "co-occurrence of 32 grey levels at 1, 2 and 4 pixels, mean of four directions"
)


def texture_features(images: Float32[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n f"]:
    """Return the features of each slice in the order of `FEATURE_NAMES`.

    All are computed over the whole slice, background included, at scales in pixels, so only slices of the
    same shape and pixel size are comparable.

    `intensity`: mean, standard deviation, skewness, excess kurtosis, energy (mean square), entropy (bits, 32
    levels of [0, 1]) and percentiles. `log<sigma>`: the same for the response to sigma² times the Laplacian
    of a Gaussian (Lindeberg 1998, Int J Comput Vis 30:79), with the slice mirrored at its edges. The mean of
    a response is 0 by construction, so its mean absolute value `magnitude` is used instead of the mean, and
    its energy, std², is left out.
    `glcm<d>`: properties of the symmetric co-occurrence matrix of 32 levels at distance d (Haralick et al.
    1973; contrast to correlation as in scikit-image's `graycoprops`, entropy in bits), averaged over four
    directions.

    For a constant slice of value v, mean and percentiles are v and the energy is v²; every std, magnitude,
    skewness, kurtosis, entropy, contrast and dissimilarity is 0; homogeneity, energy and correlation of the
    co-occurrence matrices are 1.

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
        magnitude = float(np.mean(np.abs(response))) if std else 0.0  # rounding for a constant slice
        # Half a level is added so that a response of 0 is in the middle of a level, not at its edge.
        entropy = _entropy(_levels(response / (2 * _LOG_RANGE) + 0.5 + 0.5 / LEVELS))
        features += [magnitude, std, skewness, kurtosis, entropy]
    for distance in DISTANCES:
        matrices = [_cooccurrence(levels, distance, angle) for angle in _ANGLES]
        features.extend(np.mean([_pair_properties(matrix) for matrix in matrices], axis=0))
    return np.array(features)


def _moments(values: Float64[np.ndarray, "h w"]) -> list[float]:
    """Return mean, standard deviation, skewness and excess kurtosis; all but the mean are 0 if constant."""
    mean = float(values.mean())
    centred = values - mean
    squares = centred * centred
    variance = float(squares.mean())
    if variance < _FLAT**2:
        return [mean, 0.0, 0.0, 0.0]
    third, fourth = float((squares * centred).mean()), float((squares * squares).mean())
    return [mean, variance**0.5, third / variance**1.5, fourth / variance**2 - 3]


def _levels(values: Float64[np.ndarray, "h w"]) -> Int64[np.ndarray, "h w"]:
    """Return the grey level of each value in [0, 1]; values outside are clipped."""
    return np.clip((values * LEVELS).astype(np.int64), 0, LEVELS - 1)


def _entropy(levels: Int64[np.ndarray, "h w"]) -> float:
    shares = np.bincount(levels.ravel()) / levels.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0 turns -0 into 0


@lru_cache(maxsize=8)
def _transfers(shape: tuple[int, int]) -> tuple[Float64[np.ndarray, "h w"], ...]:
    """Return, per sigma, the filter's transfer function in the domain of the cosine transform.

    The DCT-II extends a slice by mirroring it at its edges, and turns a symmetric filter into a product. One
    transform serves all sigmas, in a third of the time of four convolutions.
    """
    down, across = (np.pi * np.arange(side) / side for side in shape)
    squared = down[:, None] ** 2 + across[None, :] ** 2
    return tuple(-(sigma**2) * squared * np.exp(-(sigma**2) * squared / 2) for sigma in SIGMAS)


def _cooccurrence(
    levels: Int64[np.ndarray, "h w"], distance: int, angle: float
) -> Float64[np.ndarray, "levels levels"]:
    """Return the symmetric co-occurrence matrix at an offset, summing to 1.

    The offset is `distance` pixels along each axis involved: `graycomatrix` rounds the components of the
    radius to pixels, so a diagonal needs a radius of √2 times the distance.
    """
    radius = distance / max(abs(np.cos(angle)), abs(np.sin(angle)))
    matrices = graycomatrix(
        levels.astype(np.uint8), [radius], [angle], levels=LEVELS, symmetric=True, normed=True
    )
    return np.asarray(matrices[:, :, 0, 0])


_ROW, _COLUMN = np.mgrid[:LEVELS, :LEVELS].astype(np.float64)
_WEIGHTS = np.stack(  # of the matrix, for contrast, dissimilarity and homogeneity
    [(_ROW - _COLUMN) ** 2, np.abs(_ROW - _COLUMN), 1 / (1 + (_ROW - _COLUMN) ** 2)]
).reshape(3, -1)
_SCALE = np.arange(LEVELS, dtype=np.float64)


def _pair_properties(matrix: Float64[np.ndarray, "levels levels"]) -> list[float]:
    """Return the properties of one co-occurrence matrix, in the order of `_PAIRS`."""
    contrast, dissimilarity, homogeneity = (_WEIGHTS @ matrix.ravel()).tolist()
    marginal = matrix.sum(axis=0)  # the same for rows and columns: the matrix is symmetric
    mean = float(marginal @ _SCALE)
    variance = float(marginal @ (_SCALE - mean) ** 2)
    covariance = float((_SCALE - mean) @ matrix @ (_SCALE - mean))
    shares = matrix[matrix > 0]
    return [
        contrast,
        dissimilarity,
        homogeneity,
        float(np.sqrt((shares**2).sum())),
        covariance / variance if variance > _FLAT else 1.0,
        float(-(shares * np.log2(shares)).sum()) + 0.0,
    ]

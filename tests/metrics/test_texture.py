"""Texture features equal their definitions, flat slices have defined ones, and broken slices are refused."""

import numpy as np
import pytest
from scipy import ndimage, stats
from skimage.feature import graycomatrix, graycoprops

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.features.texture import FEATURE_NAMES, LEVELS, PERCENTILES, texture_features


def picture(seed=0, shape=(24, 40)):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def named(image):
    return dict(zip(FEATURE_NAMES, texture_features(image[None])[0].tolist(), strict=True))


def entropy(values):
    counts = np.histogram(values, bins=LEVELS, range=(0, 1))[0]
    return stats.entropy(counts, base=2)


def test_intensity_features_are_scipys():
    image = picture()
    features, values = named(image), image.astype(np.float64).ravel()
    assert features["intensity_mean"] == pytest.approx(values.mean())
    assert features["intensity_std"] == pytest.approx(values.std())
    assert features["intensity_skewness"] == pytest.approx(stats.skew(values))
    assert features["intensity_kurtosis"] == pytest.approx(stats.kurtosis(values))
    assert features["intensity_energy"] == pytest.approx((values**2).mean())
    assert features["intensity_entropy"] == pytest.approx(entropy(values))
    for percent in PERCENTILES:
        assert features[f"intensity_p{percent}"] == pytest.approx(np.percentile(values, percent))


@pytest.mark.parametrize("sigma", [2, 3, 4, 5])
def test_blob_features_are_those_of_scipys_laplacian_of_gaussian(sigma):
    image = picture(shape=(48, 64))
    features = named(image)
    response = sigma**2 * ndimage.gaussian_laplace(image.astype(np.float64), sigma, truncate=6)
    assert features[f"log{sigma}_magnitude"] == pytest.approx(np.abs(response).mean(), rel=1e-3)
    assert features[f"log{sigma}_std"] == pytest.approx(response.std(), rel=1e-3)
    assert features[f"log{sigma}_skewness"] == pytest.approx(stats.skew(response.ravel()), abs=1e-3)
    assert features[f"log{sigma}_kurtosis"] == pytest.approx(stats.kurtosis(response.ravel()), abs=1e-3)
    assert features[f"log{sigma}_entropy"] == pytest.approx(
        entropy(np.clip(response + 0.5 + 0.5 / LEVELS, 0, 1)), abs=0.01
    )


@pytest.mark.parametrize("distance", [1, 2, 4])
def test_pair_features_are_scikit_images(distance):
    image = picture()
    features = named(image)
    levels = np.minimum((image.astype(np.float64) * LEVELS).astype(np.uint8), LEVELS - 1)
    matrices = np.zeros((LEVELS, LEVELS, 1, 4))
    # scikit-image rounds a distance along the diagonal down, so its offsets are asked for one by one.
    for place, (angle, reach) in enumerate(
        [(0, 1), (np.pi / 4, 2**0.5), (np.pi / 2, 1), (3 * np.pi / 4, 2**0.5)]
    ):
        matrices[..., place] = graycomatrix(
            levels, [distance * reach], [angle], LEVELS, symmetric=True, normed=True
        )[..., 0]
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation"):
        assert features[f"glcm{distance}_{name}"] == pytest.approx(graycoprops(matrices, name).mean()), name
    bits = np.mean([stats.entropy(matrices[:, :, 0, way].ravel(), base=2) for way in range(4)])
    assert features[f"glcm{distance}_entropy"] == pytest.approx(bits)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])
def test_a_flat_slice_has_the_features_that_the_docstring_says(value):
    features = named(np.full((31, 45), value, np.float32))
    level = {"mean", *(f"p{percent}" for percent in PERCENTILES)}
    for name, feature in features.items():
        family, kind = name.split("_")
        if family == "intensity" and kind in level:
            expected = value
        elif name == "intensity_energy":
            expected = value**2
        else:
            expected = float(family.startswith("glcm") and kind in {"homogeneity", "energy", "correlation"})
        # A flat slice has exact zeros: a z-score would blow up rounding into a feature.
        assert feature == (pytest.approx(expected, abs=1e-6) if expected else 0.0), name


def test_a_slice_has_the_same_features_alone_and_in_a_stack():
    stack = np.stack([picture(0), picture(1), picture(2)])
    np.testing.assert_array_equal(texture_features(stack)[1], texture_features(stack[1:2])[0])


def test_no_slices_have_no_rows():
    assert texture_features(np.zeros((0, 16, 16), np.float32)).shape == (0, len(FEATURE_NAMES))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_slice_that_is_not_finite_is_refused_by_number(value):
    stack = np.stack([picture(0), picture(1)])
    stack[1, 3, 3] = value
    with pytest.raises(DataError, match="slice 1 has values that are not finite"):
        texture_features(stack)


def test_a_slice_in_minus_one_to_one_is_refused():
    with pytest.raises(DataError, match=r"wanted \[0, 1\]"):
        texture_features(2 * picture()[None] - 1)


def test_a_slice_too_small_for_pairs_is_refused():
    with pytest.raises(ShapeError, match="at least 8 pixels"):
        texture_features(np.zeros((1, 7, 20), np.float32))

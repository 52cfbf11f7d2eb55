"""MS-SSIM is the published one, and one picture over and over is told from many."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from slicebook.errors import DataError, ShapeError
from slicebook.metrics import diversity
from slicebook.metrics.diversity import WEIGHTS, compare_diversity, ms_ssim, scales
from slicebook.metrics.image_quality import ssim_map


def picture(seed=0, shape=(24, 40)):
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def pictures(n, seed=0):
    return np.stack([picture(1000 * seed + i) for i in range(n)])


PATIENTS = [f"patient-{i // 3:04d}" for i in range(24)]


@pytest.mark.parametrize(
    ("shape", "count"), [((256, 128), 4), ((16, 300), 1), ((176, 176), 5), ((512, 400), 5)]
)
def test_there_are_as_many_scales_as_the_smaller_side_allows(shape, count):
    assert scales(*shape) == count


def test_a_single_scale_is_the_ssim_of_record():
    x, y = picture(0, (21, 30)), picture(1, (21, 30))
    near = (0.8 * x + 0.2 * y).astype(np.float32)
    expected, _ = ssim_map(x.astype(np.float64), near.astype(np.float64))
    assert ms_ssim(x, near) == pytest.approx(expected)


def test_luminance_counts_at_the_coarsest_scale_alone():
    # By hand, from the paper: 22×22 has two scales; under one window, at the coarser, sums are all there is.
    x, y = picture(0, (22, 22)).astype(np.float64), 0.2 + 0.7 * picture(0, (22, 22)).astype(np.float64)
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def moments(a, b):
        means = (window * a).sum(), (window * b).sum()
        return *means, (window * a * a).sum() - means[0] ** 2, (window * b * b).sum() - means[1] ** 2

    def structure(a, b):
        mean_a, mean_b, var_a, var_b = moments(a, b)
        covariance = (window * a * b).sum() - mean_a * mean_b
        return (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)

    places = [(slice(i, i + 11), slice(j, j + 11)) for i in range(12) for j in range(12)]
    fine = np.mean([structure(x[place], y[place]) for place in places])
    x_half, y_half = (image.reshape(11, 2, 11, 2).mean(axis=(1, 3)) for image in (x, y))
    mean_x, mean_y, *_ = moments(x_half, y_half)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    coarse = luminance * structure(x_half, y_half)
    first, second = np.array(WEIGHTS[:2]) / sum(WEIGHTS[:2])
    assert ms_ssim(x, y) == pytest.approx(fine**first * coarse**second)


def test_a_slice_is_like_itself_and_unlike_its_negative():
    assert ms_ssim(picture(), picture()) == pytest.approx(1)
    assert ms_ssim(picture(), 1 - picture()) == 0  # a negative mean to a broken power would be no number
    blank = np.zeros((24, 24), np.float32)
    assert ms_ssim(blank, blank) == 1


def test_one_picture_over_and_over_is_not_diverse():
    diversity = compare_diversity(np.repeat(pictures(1), 9, axis=0), pictures(24), PATIENTS, seed=0, pairs=30)
    assert diversity.generated == pytest.approx(1)
    assert diversity.generated_interval == pytest.approx((1, 1))
    assert diversity.real < 0.5
    assert diversity.real_interval[0] < diversity.real < diversity.real_interval[1] < 0.8
    assert (diversity.generated_pairs, diversity.real_pairs) == (30, 30)


def test_pairs_are_of_different_patients():
    # A patient's slices are one picture: a pair within a patient would count 1.
    images = np.repeat(pictures(8), 3, axis=0)
    diversity = compare_diversity(pictures(8), images, PATIENTS, seed=0)
    assert diversity.real == pytest.approx(
        diversity.generated
    )  # all pairs of both: the same 28 pictures' pairs
    assert (diversity.generated_pairs, diversity.real_pairs) == (28, 28 * 9)


def test_the_interval_is_that_of_a_mean_of_pairs():
    # Likeness as a sum of what each patient brings has the standard error of 2 means: 2 s / √N.
    brings = norm.ppf((np.arange(40) + 0.5) / 40)
    first, second = np.triu_indices(40, 1)
    low, high = diversity._interval(0.1 * (brings[first] + brings[second]), first, second)
    half = (high - low) / 2 / 2.0227  # Student's t of 39 degrees of freedom
    assert half == pytest.approx(0.2 * brings.std(ddof=1) / np.sqrt(40), rel=0.06)


def test_two_patients_have_a_mean_and_no_interval():
    diversity = compare_diversity(pictures(4), pictures(6, 1), [*"aaabbb"], seed=0)
    assert diversity.real_interval is None
    assert diversity.real_pairs == 9


def test_a_diversity_depends_on_its_seed_alone():
    images = pictures(24)
    first, again, other = (
        compare_diversity(images, images, PATIENTS, seed=seed, pairs=20) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_what_has_no_pairs_is_refused():
    images = pictures(6)
    with pytest.raises(DataError, match="1 held-out patients, wanted at least 2"):
        compare_diversity(images, images, ["one"] * 6, seed=0)
    with pytest.raises(DataError, match="1 slices of 1 generated slices, wanted at least 2"):
        compare_diversity(images[:1], images, [*"aabbcc"], seed=0)
    with pytest.raises(ShapeError, match="5 patients for 6 real slices"):
        compare_diversity(images, images, [*"aabbc"], seed=0)
    with pytest.raises(ShapeError, match="generated slices are 20×20, real ones 24×40"):
        compare_diversity(np.zeros((2, 20, 20), np.float32), images, [*"aabbcc"], seed=0)
    with pytest.raises(ShapeError, match="at least 11 pixels"):
        compare_diversity(images[..., :10], images[..., :10], [*"aabbcc"], seed=0)
    images[2] = np.nan
    with pytest.raises(DataError, match="slice 2 has values that are not finite"):
        compare_diversity(images, images, [*"aabbcc"], seed=0)

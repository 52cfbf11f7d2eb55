"""Scores equal their definitions, and degenerate slices get a defined score or a clear refusal."""

import numpy as np
import pytest
from scipy.stats import t as student
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.image_quality import CONVENTIONS, _edges, foreground, scores, ssim_map
from slicebook.metrics.statistics import bootstrap_interval, patient_means


def body(rows=40, columns=48, hole=True):
    """A bright ellipse with a dark hole, a lone bright dot, and an empty background."""
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - rows / 2) / (rows / 3)) ** 2 + ((x - columns / 2) / (columns / 3)) ** 2 < 1
    image = np.where(
        inside,
        0.7 + 0.2 * np.sin(x / 3) * np.cos(y / 4),
        0.0,
    )
    if hole:
        image[rows // 2 - 3 : rows // 2 + 3, columns // 2 - 3 : columns // 2 + 3] = 0.0
    image[2, 2] = 0.9
    return image.astype(np.float32), inside


def noisy(image, seed=0, size=0.1):
    return (image + size * np.random.default_rng(seed).normal(size=image.shape)).astype(np.float32)


def test_foreground_is_the_largest_bright_part_with_its_holes_filled():
    image, inside = body()
    np.testing.assert_array_equal(foreground(image), inside)


def test_foreground_reaches_down_to_half_the_otsu_threshold():
    image = np.zeros((20, 20), np.float32)
    image[4:16, 4:16] = 1.0
    image[4:16, 10:12] = 0.4  # below Otsu's threshold, above half of it
    assert foreground(image).sum() == 12 * 12


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_slice_has_no_foreground(value):
    assert not foreground(np.full((16, 16), value, np.float32)).any()


def test_ssim_of_record_is_scikit_images_gaussian_one():
    image, inside = body()
    copy = np.clip(noisy(image), 0, 1)
    expected, values = structural_similarity(
        image.astype(np.float64),
        copy.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    measured = scores(image, copy)
    assert measured.ssim_whole == pytest.approx(expected, abs=1e-9)
    assert measured.ssim_foreground == pytest.approx(values[inside].mean(), abs=1e-9)
    assert ssim_map(image, copy)[0] == pytest.approx(expected, abs=1e-5)


def test_the_other_ssims_are_the_conventions_they_name():
    image, _ = body()
    copy = np.clip(noisy(image), 0, 1)
    measured = scores(image, copy, volume_max=0.95)
    siblings = structural_similarity(2 * image - 1, 2 * copy - 1, data_range=2)
    assert measured.ssim_skimage_default == pytest.approx(siblings, abs=1e-5)
    assert measured.ssim_fastmri == pytest.approx(
        structural_similarity(image, copy, data_range=0.95), abs=1e-5
    )
    assert (
        len(
            {
                measured.ssim_whole,
                measured.ssim_foreground,
                measured.ssim_skimage_default,
                measured.ssim_fastmri,
            }
        )
        == 4
    )


def test_errors_equal_values_worked_by_hand():
    image = np.zeros((12, 12), np.float32)
    image[:, 6:] = 0.8
    copy = image.copy()
    copy[:, 6:] = 0.6  # off by 0.2 on half of the slice, all of it foreground
    measured = scores(image, copy)
    assert measured.mae_whole == pytest.approx(0.1)
    assert measured.mae_foreground == pytest.approx(0.2)
    assert measured.psnr_whole == pytest.approx(peak_signal_noise_ratio(image, copy, data_range=1), abs=1e-5)
    assert measured.psnr_foreground == pytest.approx(-20 * np.log10(0.2), abs=1e-5)
    assert measured.nmse_whole == pytest.approx((0.2 / 0.8) ** 2)
    assert measured.hfen_whole == pytest.approx(
        0.25
    )  # the filter is linear, the error a quarter of the slice


def test_hfen_is_a_laplacian_of_gaussian_15_pixels_wide():
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1.0
    changed = point.copy()
    changed[20, 35] = 1.0  # its 15×15 kernel does not reach the first
    assert scores(point, changed).hfen_whole == pytest.approx(1.0, abs=1e-3)
    y, x = np.mgrid[-7:8, -7:8] / 1.5
    formula = (y**2 + x**2 - 2) * np.exp(-(y**2 + x**2) / 2)
    kernel = _edges(point)[13:28, 13:28]
    assert np.corrcoef(kernel.ravel(), formula.ravel())[0, 1] > 0.9999


def test_an_exact_copy_scores_perfectly():
    image, _ = body()
    measured = scores(image, image).named()
    for name, value in measured.items():
        perfect = 1.0 if name.startswith("ssim") else 100.0 if name.startswith("psnr") else 0.0
        assert value == pytest.approx(perfect, abs=1e-9), name


def test_a_blank_slice_has_defined_scores_and_none_where_nothing_is_divided():
    blank = np.zeros((16, 16), np.float32)
    measured = scores(blank, blank + np.float32(0.1), volume_max=0.0)
    assert measured.ssim_foreground is measured.psnr_foreground is measured.mae_foreground is None
    assert (
        measured.nmse_whole
        is measured.nmse_foreground
        is measured.hfen_whole
        is measured.ssim_fastmri
        is None
    )
    assert measured.mae_whole == pytest.approx(0.1)
    assert np.isfinite([measured.ssim_whole, measured.ssim_skimage_default, measured.psnr_whole]).all()


def test_a_reconstruction_is_clipped_to_the_range_of_a_file():
    image, _ = body()
    copy = noisy(image, size=0.5)
    assert scores(image, copy) == scores(image, np.clip(copy, 0, 1))


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (1, 1)])
def test_a_slice_smaller_than_the_window_is_refused_with_its_size(shape):
    with pytest.raises(ShapeError, match=f"slice is {shape[0]}×{shape[1]}.*at least 11"):
        scores(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


def test_the_smallest_slice_that_is_allowed_is_scored():
    image = np.random.default_rng(0).random((11, 11), dtype=np.float32)
    assert np.isfinite(scores(image, image).ssim_whole)


def test_a_pair_of_two_shapes_is_refused():
    with pytest.raises(ShapeError, match="reconstruction is 16×32, its original 16×16"):
        scores(np.zeros((16, 16), np.float32), np.zeros((16, 32), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    image, _ = body()
    broken = image.copy()
    broken[5, 5] = bad
    with pytest.raises(DataError, match="reconstruction has values that are not finite"):
        scores(image, broken)


def test_a_slice_still_in_minus_one_to_one_is_refused():
    image, _ = body()
    with pytest.raises(DataError, match="wanted \\[0, 1\\]"):
        scores(2 * image - 1, image)


def test_every_score_has_a_convention_and_every_convention_a_score():
    image, _ = body()
    assert list(scores(image, image).named()) == list(CONVENTIONS)


def test_a_patient_counts_once_however_many_slices():
    assert patient_means([1.0, 1.0, 1.0, 0.0, None], ["a", "a", "a", "b", "b"]) == {"a": 1.0, "b": 0.0}


def test_the_interval_comes_from_patients_not_from_slices():
    rng = np.random.default_rng(1)
    means = rng.random(6)
    values = [float(mean) for mean in means for _ in range(50)]
    patients = [f"p{i}" for i in range(6) for _ in range(50)]
    interval = bootstrap_interval(values, patients, seed=0)
    of_means = bootstrap_interval([float(m) for m in means], [f"p{i}" for i in range(6)], seed=0)
    assert interval is not None
    assert interval == pytest.approx(of_means)
    # Student's interval over 6 patients; over 300 slices it would be 9 times narrower.
    width = 2 * student.ppf(0.975, 5) * means.std(ddof=1) / 6**0.5
    assert interval[1] - interval[0] == pytest.approx(width, rel=0.15)
    assert interval[0] < means.mean() < interval[1]


@pytest.mark.parametrize("patients", [6, 12])
def test_an_interval_of_few_patients_holds_the_truth_as_often_as_it_says(patients):
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(patients)]
    sets = rng.normal(size=(300, patients)).tolist()
    intervals = [
        bootstrap_interval(means, names, seed=seed, resamples=2000) for seed, means in enumerate(sets)
    ]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.9 <= covered <= 0.98  # plain percentiles: .85 of 6 patients


def test_the_interval_is_the_same_for_the_same_seed():
    values, patients = [0.1, 0.4, 0.9], ["a", "b", "c"]
    assert bootstrap_interval(values, patients, seed=3) == bootstrap_interval(values, patients, seed=3)


def test_one_patient_has_no_interval():
    assert bootstrap_interval([0.1, 0.9], ["a", "a"], seed=0) is None
    assert bootstrap_interval([0.1, None], ["a", "b"], seed=0) is None

"""Distances equal their closed forms, and what is wrong with generated slices shows beside real patients."""

import numpy as np
import prdc as prdc_library
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.distribution import (
    NEIGHBOURS,
    ball_radii,
    compare,
    frechet_distance,
    kernel,
    prdc_between,
    standardise,
    unbiased_mmd,
)
from slicebook.metrics.statistics import draw_groups, interval_by_patient, measure_relative


def kernel_distance(x, y):
    return unbiased_mmd(kernel(x, x), kernel(y, y), kernel(x, y))


def prdc(real, generated, real_patients=None, generated_patients=None, neighbours=NEIGHBOURS):
    return prdc_between(
        cdist(real, generated),
        ball_radii(cdist(real, real), real_patients, neighbours),
        ball_radii(cdist(generated, generated), generated_patients, neighbours),
        neighbours,
    )


def column(*values):
    return np.array(values, np.float64)[:, None]


def gaussian(n, features=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, features))


def held_out(patients=8, slices=20, features=3, seed=0, between=0.3):
    """Features of patients who differ a little, and whose each they are."""
    draw = np.random.default_rng(seed)
    centres = between * draw.normal(size=(patients, 1, features))
    values = (centres + draw.normal(size=(patients, slices, features))).reshape(-1, features)
    return values, [f"patient-{i:04d}" for i in range(patients) for _ in range(slices)]


def test_features_become_standard_deviations_of_the_reference():
    reference = np.array([[0.0, 10.0], [2.0, 30.0]])
    standardised = standardise(np.array([[1.0, 40.0]]), reference)
    np.testing.assert_allclose(standardised, [[0.0, 2.0]])


def test_a_feature_constant_in_the_reference_divides_by_nothing():
    reference = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    standardised = standardise(np.array([[0.1, 2.0], [0.6, 2.0]]), reference)
    np.testing.assert_allclose(standardised, [[0.0, 0.0], [0.5, 0.0]], atol=1e-12)


def test_features_of_one_unit_are_scaled_together():
    # Standard deviations 1, 7 and 0: their root mean square is √(50 / 3).
    reference = np.array([[0.0, 0.0, 3.0], [2.0, 14.0, 3.0]])
    standardised = standardise(np.array([[3.0, 0.0, 4.0]]), reference, one_unit=True)
    np.testing.assert_allclose(standardised, np.array([[2.0, -7.0, 1.0]]) / np.sqrt(50 / 3))
    flat = standardise(np.array([[1.5, 1.0]]), np.ones((4, 2)), one_unit=True)
    np.testing.assert_allclose(flat, [[0.5, 0.0]])


def test_kernel_distance_by_hand():
    # One feature, k(a, b) = (ab + 1)³. x = {0, 1}: k(0, 1) = 1. y = {1, 2}: k(1, 2) = 27.
    # Between: k(0, 1) = 1, k(0, 2) = 1, k(1, 1) = 8, k(1, 2) = 27, mean 9.25.
    assert kernel_distance(column(0, 1), column(1, 2)) == pytest.approx(1 + 27 - 2 * 9.25)


def test_kernel_distance_divides_by_the_number_of_features():
    x, y = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [2.0, 2.0]])
    assert kernel_distance(x, y) == pytest.approx(1 + 27 - 2 * 9.25)


def test_kernel_distance_has_no_bias():
    values = [kernel_distance(gaussian(8, seed=i), gaussian(8, seed=1000 + i)) for i in range(300)]
    # A biased estimate, which counts a slice with itself, would lie near 2 here.
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_kernel_distance_of_a_shifted_set_is_far():
    x = gaussian(100)
    assert kernel_distance(x, x + 1) > 10 * abs(kernel_distance(x, gaussian(100, seed=1)))


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    # Standard deviations 1 and 3, means 0 and 2: 2² + (3 - 1)².
    spread = column(-1, 1) / np.sqrt(2)
    assert frechet_distance(spread, 3 * spread + 2) == pytest.approx(8.0)


def test_frechet_distance_of_correlated_features_is_that_of_the_matrix_root():
    x = gaussian(60) @ np.array([[1, 0.5, 0], [0, 2, 0.3], [0, 0, 0.7]])
    y = gaussian(50, seed=1) @ np.array([[2, 0, 0.1], [0.4, 1, 0], [0, 0.6, 1]]) + 0.5
    a, b = np.cov(x.T), np.cov(y.T)
    means = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    expected = means + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet_distance(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("slices", [40, 6])
def test_frechet_distance_is_that_of_torchmetrics(slices):
    # 6 slices of 8 features have singular covariances.
    x, y = gaussian(slices, 8) @ gaussian(8, 8, seed=2), 2 * gaussian(slices, 8, seed=1) + 1
    moments = [torch.from_numpy(moment) for z in (x, y) for moment in (z.mean(axis=0), np.cov(z.T))]
    assert frechet_distance(x, y) == pytest.approx(float(_compute_fid(*moments)), rel=1e-5)


def test_kernel_distance_is_that_of_torchmetrics():
    x, y = gaussian(40, 8), 1.3 * gaussian(40, 8, seed=1) + 0.2
    theirs = poly_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert kernel_distance(x, y) == pytest.approx(float(theirs), rel=1e-9)


def test_frechet_distance_is_defined_for_fewer_slices_than_features():
    x = gaussian(4, features=12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(12)
    assert frechet_distance(x, gaussian(4, features=12, seed=1)) > 1  # the floor of a small set


def test_balls_by_hand():
    # k = 1. Real at 0, 1, 5 reach 1, 1, 4; generated at 0.5, 0.6, 30, 90 reach 0.1, 0.1, 29.4, 60.
    measures = prdc(column(0, 1, 5), column(0.5, 0.6, 30, 90), neighbours=1)
    assert measures.coverage == 2 / 3  # 0 and 1; 5 reaches down to 1 only
    assert measures.density == 1  # of four, each of 0.5 and 0.6 lies in two balls
    assert measures.precision == 0.5
    assert measures.recall == 2 / 3  # 1 and 5 in the wide ball of 30, which reaches down to 0.6


@pytest.mark.parametrize(("spread", "shift"), [(0.6, 0.6), (0.9, 0.7), (1.0, 0.0)])
def test_balls_are_those_of_prdc(spread, shift, capsys):
    real, generated = gaussian(36, 4), spread * gaussian(30, 4, seed=1) + shift
    measures = prdc(real, generated)
    for name, expected in prdc_library.compute_prdc(real, generated, NEIGHBOURS).items():
        assert getattr(measures, name) == pytest.approx(expected), name


def test_balls_of_one_distribution_have_the_expectations_of_the_paper():
    # Naeem et al. 2020, lemmas 1 and 2: whatever the distribution, a density of 1 and this coverage.
    measures = [
        prdc(gaussian(30, 2, seed=i), gaussian(20, 2, seed=1000 + i), neighbours=3) for i in range(300)
    ]
    missed = (29 * 28 * 27) / (49 * 48 * 47)  # the 3 nearest of 49 others are all among 29 real ones
    assert np.mean([measure.density for measure in measures]) == pytest.approx(1, abs=0.03)
    assert np.mean([measure.coverage for measure in measures]) == pytest.approx(1 - missed, abs=0.015)


def test_balls_reach_to_other_patients_only():
    real = column(0, 0.1, 2, 2.1)
    generated = column(1.0, 50, 100)
    assert prdc(real, generated, neighbours=1).coverage == 0
    assert prdc(real, generated, ["a", "a", "b", "b"], neighbours=1).coverage == 1


@pytest.mark.parametrize("values", [gaussian(12), np.zeros((12, 3))])
def test_identical_sets_cover_each_other(values):
    measures = prdc(values, values.copy())
    assert (measures.coverage, measures.precision, measures.recall) == (1, 1, 1)


def test_no_neighbours_are_refused():
    with pytest.raises(DataError, match="has 5 slices of other patients"):
        prdc(gaussian(6), gaussian(6), neighbours=6)
    with pytest.raises(DataError, match="has 0 slices of other patients"):
        prdc(gaussian(6), gaussian(6), ["one"] * 6)


@pytest.mark.parametrize("measure", [frechet_distance, standardise])
def test_a_measure_refuses_what_it_cannot_compare(measure):
    broken = gaussian(10)
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match=r"feature 1 of slice 3 is nan, which is not finite \(1 slices"):
        measure(gaussian(10), broken)
    with pytest.raises(ShapeError, match="3 features, the other 4"):
        measure(gaussian(10), gaussian(10, features=4))


def test_one_slice_has_no_distance():
    with pytest.raises(DataError, match="a set has 1 slices"):
        frechet_distance(gaussian(1), gaussian(5))


def test_real_slices_of_new_patients_pass():
    real, patients = held_out()
    comparison = compare(held_out(seed=5)[0], real, patients, seed=0, draws=30)
    assert comparison.as_near_as_real
    assert comparison.coverage.share > 0.8
    assert (comparison.slices, comparison.patients, comparison.draws) == (80, 8, 30)


def test_shifted_slices_are_farther_than_real_patients():
    real, patients = held_out()
    comparison = compare(held_out(seed=5)[0] + 1.5, real, patients, seed=0, draws=30)
    assert not comparison.as_near_as_real
    assert comparison.frechet_distance.generated > comparison.frechet_distance.real_range[1]


def test_loss_of_a_mode_lowers_coverage():
    real, patients = held_out()
    real[::2, 0] += 12  # two kinds of slices in every patient
    both = held_out(seed=5)[0]
    both[::2, 0] += 12
    whole = compare(both, real, patients, seed=0, draws=30)
    lost = compare(held_out(seed=5)[0], real, patients, seed=0, draws=30)
    assert whole.coverage.share > 0.9
    assert lost.coverage.share < 0.6
    assert lost.recall.share < 0.6
    assert lost.precision.share > 0.9  # what is drawn is good: precision does not miss the rest
    assert lost.coverage_by_patient.mean_of_patients < 0.6 < whole.coverage_by_patient.mean_of_patients


def test_one_good_picture_repeated_fails_coverage():
    real, patients = held_out()
    comparison = compare(np.repeat(real[:1], 80, axis=0), real, patients, seed=0, draws=30)
    assert comparison.coverage.share < 0.8
    assert comparison.recall.generated < 0.1


def test_coverage_of_patients_has_an_interval_over_them():
    real, patients = held_out(between=1.5)
    covered = compare(held_out(patients=2, seed=5)[0], real, patients, seed=0, draws=3).coverage_by_patient
    low, high = covered.interval
    assert low < covered.mean_of_patients < high
    assert covered.patients == 8


def test_patients_of_near_duplicates_can_cover_each_other():
    real, patients = held_out(patients=12, slices=10, features=1, between=1)
    centres = np.repeat(real.reshape(12, 10, 1).mean(axis=1), 10, axis=0)
    comparison = compare(
        gaussian(60, 1), centres + 1e-3 * gaussian(120, 1, seed=9), patients, seed=0, draws=20
    )
    assert comparison.coverage.real > 0.3
    assert comparison.recall.real > 0.3


def test_generated_slices_are_drawn_once_each():
    slices = gaussian(20)
    comparison = compare(slices, np.tile(slices, (2, 1)), ["a"] * 20 + ["b"] * 20, seed=0, draws=5)
    assert comparison.frechet_distance.generated_range[1] == pytest.approx(0, abs=1e-9)


def test_a_comparison_depends_on_its_seed_alone():
    real, patients = held_out(patients=4)
    generated = gaussian(30, seed=8)
    assert compare(generated, real, patients, seed=1, draws=3) == compare(
        generated, real, patients, seed=1, draws=3
    )


def test_two_patients_have_distances_but_no_balls():
    real, patients = held_out(patients=2)
    comparison = compare(gaussian(30, seed=8), real, patients, seed=1, draws=3)
    assert comparison.slices == 20
    assert np.isfinite(comparison.kernel_distance.generated)
    assert comparison.coverage is comparison.density is comparison.precision is comparison.recall is None
    assert (
        comparison.coverage_by_patient is not None
    )  # of all slices, where the other patient's are the neighbours


def test_fewer_generated_slices_than_features_are_compared_at_their_number():
    real, patients = held_out(features=20)
    comparison = compare(gaussian(8, features=20, seed=8), real, patients, seed=1, draws=3)
    assert comparison.slices == 8
    assert comparison.frechet_distance.real > 0


def test_a_comparison_is_what_the_distances_say_of_each_draw():
    real, patients = held_out()
    generated = gaussian(50, seed=8)
    comparison = compare(generated, real, patients, seed=4, draws=1)
    generator = np.random.default_rng(4)
    ((first, second),) = draw_groups(patients, 50, 1, generator)
    drawn = generator.choice(50, size=len(first), replace=False)
    names = np.array(patients)
    reference, other = (standardise(real[group], real) for group in (first, second))
    ours = standardise(generated[drawn], real)
    assert comparison.kernel_distance.generated == pytest.approx(kernel_distance(reference, ours))
    assert comparison.kernel_distance.real == pytest.approx(kernel_distance(reference, other))
    assert comparison.frechet_distance.generated == pytest.approx(frechet_distance(reference, ours))
    assert comparison.frechet_distance.real == pytest.approx(frechet_distance(reference, other))
    sides = ((ours, None, "generated"), (other, names[second].tolist(), "real"))
    for measured, owners, side in sides:
        measures = prdc(reference, measured, names[first].tolist(), owners)
        for name, value in vars(measures).items():
            assert getattr(getattr(comparison, name), side) == value, name


def test_copies_of_held_out_slices_are_nearer_than_other_patients():
    real, patients = held_out()
    comparison = compare(real.copy(), real, patients, seed=0, draws=30)
    # Of independent sets the kernel distance is 0 on average: below it, slices know each other.
    assert comparison.kernel_distance.generated < 0 < comparison.kernel_distance.real
    assert comparison.precision.generated == 1
    assert comparison.coverage_by_patient.mean_of_patients == 1


def test_a_feature_that_hardly_stirs_drowns_no_other():
    real, patients = held_out()
    real[:, 2] = 0
    real[0, 2] = 1e-3  # in one slice alone
    fair = held_out(seed=5)[0]
    fair[:, 2] = 0
    fair[::40, 2] = 0.05
    apart, together = (
        compare(fair, real, patients, seed=0, draws=10, one_unit=unit) for unit in (False, True)
    )
    assert not apart.as_near_as_real
    assert together.as_near_as_real
    assert (apart.standardised == together.standardised) is False


def test_constant_features_of_slices_that_are_all_alike_have_defined_distances():
    _, patients = held_out()
    comparison = compare(np.zeros((40, 3)), np.zeros((160, 3)), patients, seed=0, draws=3)
    assert (comparison.kernel_distance.generated, comparison.frechet_distance.generated) == (0, 0)
    assert (comparison.coverage.generated, comparison.precision.real, comparison.recall.share) == (1, 1, 1)


def test_halves_of_the_patients_give_a_mean_its_standard_error():
    # s / √N times Student's t of N - 1 degrees of freedom: the classical interval of a mean.
    values = gaussian(12, 1)[:, 0]
    halves = [np.random.default_rng(i).permutation(values)[:6].mean() for i in range(2000)]
    low, high = interval_by_patient(halves, 12)
    assert (high - low) / 2 == pytest.approx(2.201 * values.std(ddof=1) / np.sqrt(12), rel=0.05)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.05)


def test_the_interval_holds_what_other_patients_would_have_said():
    generated = gaussian(40, seed=3) + 0.4
    trials = []
    for seed in range(60):
        real, patients = held_out(slices=8, between=0.7, seed=seed)
        trials.append(measure_relative("", frechet_distance, generated, real, patients, seed=seed, draws=20))
    expected = np.mean([trial.generated for trial in trials])
    within = np.mean([trial.interval[0] <= expected <= trial.interval[1] for trial in trials])
    assert 0.85 <= within <= 1  # 95 % wanted; the distance is skewed
    # No wider than need be: Student's t of 7 degrees of freedom is 2.36.
    width = np.median([trial.interval[1] - trial.interval[0] for trial in trials]) / 2
    assert width < 4 * np.std([trial.generated for trial in trials])


def test_an_interval_keeps_within_the_bounds_of_its_measure():
    real, patients = held_out(patients=4)
    comparison = compare(held_out(seed=5)[0], real, patients, seed=0, draws=20)
    for name in ("coverage", "precision", "recall"):
        low, high = getattr(comparison, name).interval
        assert 0 <= low <= getattr(comparison, name).generated <= high <= 1
    assert comparison.frechet_distance.interval[0] >= 0
    assert comparison.kernel_distance.interval[0] < 0


def test_a_measure_of_ones_own_is_put_beside_real_patients():
    rows = np.repeat(np.arange(6.0), 5)[:, None]
    patients = [f"{i // 5}" for i in range(30)]

    def apart(x, y):
        return abs(float(x.mean() - y.mean()))

    relative = measure_relative("means apart", apart, rows + 10, rows, patients, seed=0, draws=40)
    assert relative.generated == pytest.approx(10, abs=1)
    assert relative.real <= 3
    assert relative.interval[0] > relative.real_range[1]


def test_a_patient_is_wanted_for_each_real_slice():
    real, patients = held_out()
    with pytest.raises(ShapeError, match="159 patients for 160 real slices"):
        compare(real, real, patients[1:], seed=0)


def test_twins_of_the_other_half_are_what_real_slices_are():
    features, patients = held_out(8, 12, seed=3)
    comparison = compare(features.copy(), features, patients, seed=0, paired=True)
    for name in ("kernel_distance", "frechet_distance", "coverage", "recall"):
        relative = getattr(comparison, name)
        assert relative.generated == pytest.approx(relative.real)
    assert comparison.coverage_by_patient is None
    with pytest.raises(ShapeError, match="wanted one of each"):
        compare(features[1:], features, patients, seed=0, paired=True)

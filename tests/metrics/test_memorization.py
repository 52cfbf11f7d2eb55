"""Copies are found, originals are not called copies, and a test that is blind says so."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.membership import membership
from slicebook.metrics.memorization import MIN_SAMPLES, _max_copy_share, audit
from slicebook.metrics.nearest import Nearest, describe, nearest_by_correlation, plant

FEATURES = 10


def people(patients, slices=10, seed=0, between=1.0):
    """Features of patients, as images one pixel wide (which no mirroring changes), and whose each is."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(patients, 1, FEATURES))
    values = between * centres + 0.6 * draw.normal(size=(patients, slices, FEATURES))
    images = values.reshape(-1, FEATURES, 1).astype(np.float32)
    return images, [f"patient-{seed}-{i:04d}" for i in range(patients) for _ in range(slices)]


def originals(n, seed):
    return people(n, 1, seed)[0]


def lossy(images):
    return images + 0.1 * np.random.default_rng(0).normal(size=images.shape).astype(np.float32)


def blind(images):
    return originals(len(images), 99)


TRAIN, WHOSE = people(40)
HELD_OUT, HELD_OUT_PATIENTS = people(12, seed=1)


def search(images, patients):
    """Search among the features themselves, by Euclidean distance."""
    distances = cdist(images[..., 0], TRAIN[..., 0])
    owners = np.array(WHOSE)
    if patients is not None:
        distances[np.array(patients)[:, None] == owners] = np.inf
    nearest = distances.argmin(axis=1)
    others = np.where(owners[nearest][:, None] == owners, np.inf, distances)
    unmoved = np.zeros((len(images), 2), np.int64)
    return Nearest(nearest, distances.min(axis=1), others.min(axis=1), unmoved[:, 0] > 0, unmoved)


def audited(samples, held_out=HELD_OUT, patients=HELD_OUT_PATIENTS, reconstruct=lossy, seed=0):
    return audit(samples, held_out, patients, TRAIN, range(len(TRAIN)), search, reconstruct, seed=seed)


def with_copies(n, copies, seed):
    samples = originals(n, seed)
    samples[:copies] = lossy(TRAIN[5 : 5 + copies])
    return samples


def test_originals_are_no_copies():
    report = audited(originals(200, 7))
    assert report.valid
    assert not report.copies_found
    assert report.verdict.startswith("Valid: 100% of 10 planted copies were detected. No copies of training")
    assert (report.samples, report.held_out_slices, report.held_out_patients) == (200, 120, 12)


def test_one_copy_among_five_hundred_is_found_and_named():
    report = audited(with_copies(500, 1, 7))
    many, any_one = report.tests
    assert report.copies_found
    assert (many.positive, any_one.positive) == (False, True)
    assert (report.closest[0].sample, report.closest[0].training) == (0, 5)
    assert report.closest[0].distance_ratio > any_one.distance_ratio > report.closest[1].distance_ratio
    assert "Copies of training slices found" in report.verdict


def test_a_copy_that_is_mirrored_and_moved_is_found_in_images():
    noise = np.random.default_rng(0).normal(size=(60, 40, 40))
    images = np.stack([20 * gaussian_filter(field, 4) for field in noise]).astype(np.float32)
    train, held_out, samples = images[:20], images[20:40], images[40:].copy()
    samples[3] = np.pad(train[2, :, ::-1], ((2, 0), (0, 1)), mode="edge")[:40, 1:]
    by_correlation = partial(
        nearest_by_correlation, training=describe(train), training_patients=list("abcdefghij" * 2)
    )
    patients = [str(i) for i in range(20)]
    report = audit(samples, held_out, patients, train, range(20), by_correlation, lossy, seed=0)
    assert report.controls[1].passed
    assert report.copies_found
    first = report.closest[0]
    assert (first.sample, first.training, first.mirror, first.shift) == (3, 2, True, (2, -1))
    assert report.controls[1].source_found == 1


def test_false_alarms_are_few_and_copies_are_found():
    alarms, hits = [], []
    for trial in range(60):
        held_out, patients = people(12, seed=1000 + trial)
        alarms.append(audited(originals(300, 2000 + trial), held_out, patients).copies_found)
        hits.append(audited(with_copies(300, 15, 3000 + trial), held_out, patients).copies_found)
    assert np.mean(alarms) <= 0.05
    assert np.mean(hits) >= 0.95


def test_a_tokenizer_that_leaves_nothing_makes_the_audit_invalid():
    report = audited(originals(200, 7), reconstruct=blind)
    assert not report.valid
    assert report.verdict.startswith("INVALID: 0% of 10 planted copies were detected")


def test_copies_among_the_samples_do_not_make_a_blind_control_valid():
    report = audited(with_copies(200, 50, 7), reconstruct=blind)
    assert report.copies_found
    assert not report.valid


def test_few_held_out_patients_make_the_audit_invalid():
    held_out, patients = people(5, seed=1)
    report = audited(originals(200, 7), held_out, patients)
    assert not report.valid
    assert "rests on 5 held-out patients, wanted at least 6" in report.verdict


def test_training_slices_can_stand_for_held_out_ones():
    report = audited(originals(200, 7), TRAIN, WHOSE)
    assert report.valid
    assert not report.copies_found
    assert report.held_out_patients == 40
    assert report.nearer.threshold > 0.5  # not to themselves


def test_a_generator_that_is_nearer_to_everybody_copies_nobody():
    # Smooth samples lie in the middle: nearer to training slices than real ones, but to many alike.
    report = audited(0.5 * originals(300, 7))
    assert report.nearer.share > 0.05
    assert not report.copies_found


def test_the_share_nearer_than_the_quantile_by_hand():
    nearer = audited(originals(200, 7)).nearer
    real = search(HELD_OUT, HELD_OUT_PATIENTS).distance
    ours = search(originals(200, 7), None).distance
    assert nearer.threshold == np.quantile(real, 0.01)
    assert nearer.share == np.mean(ours < nearer.threshold)
    assert nearer.interval[0] <= nearer.share <= nearer.interval[1]


def test_the_interval_is_over_patients_not_slices():
    repeated, patients = np.repeat(HELD_OUT, 4, axis=0), np.repeat(HELD_OUT_PATIENTS, 4).tolist()
    once, often = audited(originals(200, 7)), audited(originals(200, 7), repeated, patients)
    assert often.tests[0].distance_ratio == pytest.approx(once.tests[0].distance_ratio, rel=0.05)
    slices_alone = audited(originals(200, 7), repeated, [str(i) for i in range(len(repeated))])
    assert slices_alone.tests[0].distance_ratio < 0.95 * often.tests[0].distance_ratio


def test_controls_replace_a_hundredth_and_a_twentieth():
    few, many = audited(originals(300, 7)).controls
    assert (few.share, few.planted, many.share, many.planted) == (0.01, 3, 0.05, 15)
    assert few.passed
    assert many.passed
    assert many.detected == many.source_found == 1
    assert many.nearer.share - audited(originals(300, 7)).nearer.share == pytest.approx(0.05, abs=0.01)


def test_at_least_one_copy_is_planted():
    report = audited(originals(3, 7))
    assert [control.planted for control in report.controls] == [1, 1]


def test_few_samples_make_the_audit_invalid():
    few, enough = audited(originals(MIN_SAMPLES - 1, 7)), audited(originals(MIN_SAMPLES, 7))
    assert few.verdict.startswith("INVALID: 99 samples were searched, wanted at least 100; generate more.")
    assert (few.valid, enough.valid) == (False, True)


def test_an_audit_is_json_and_depends_on_its_seed_alone():
    samples = originals(50, 7)
    first, again, other = audited(samples), audited(samples), audited(samples, seed=1)
    text = json.dumps(asdict(first), allow_nan=False)
    assert text == json.dumps(asdict(again))
    assert text != json.dumps(asdict(other))


def test_an_exact_copy_has_a_finite_gap():
    samples = originals(50, 7)
    samples[0] = TRAIN[5]
    report = audited(samples)
    assert report.closest[0].distance_ratio == pytest.approx(1e6)
    json.dumps(asdict(report), allow_nan=False)


def test_what_cannot_be_audited_is_refused():
    samples = originals(50, 7)
    with pytest.raises(DataError, match="no samples"):
        audited(samples[:0])
    with pytest.raises(DataError, match="1 held-out patients, wanted at least 2"):
        audited(samples, HELD_OUT[:10], HELD_OUT_PATIENTS[:10])
    with pytest.raises(DataError, match="12 patients for 120 held-out slices"):
        audited(samples, patients=HELD_OUT_PATIENTS[::10])
    with pytest.raises(DataError, match=r"1 training slices with 1 indices .* at least 2"):
        audit(samples, HELD_OUT, HELD_OUT_PATIENTS, TRAIN[:1], [0], search, lossy, seed=0)
    with pytest.raises(DataError, match="2 training slices with 1 indices"):
        audit(samples, HELD_OUT, HELD_OUT_PATIENTS, TRAIN[:2], [0], search, lossy, seed=0)


def test_held_out_slices_that_are_all_blank_are_refused():
    blank = np.zeros((12, 40, 40), np.float32)
    images = np.random.default_rng(0).normal(size=(12, 40, 40)).astype(np.float32)
    patients = [str(i) for i in range(12)]
    by_correlation = partial(nearest_by_correlation, training=describe(images), training_patients=patients)
    with pytest.raises(DataError, match=r"all 12 held-out slices are 1 times farther .* neither blank"):
        audit(images, blank, patients, images, range(12), by_correlation, lossy, seed=0)


def test_planted_copies_are_what_they_say():
    images = np.random.default_rng(0).normal(size=(40, 20, 50)).astype(np.float32)
    made = plant(images, 40, lambda x: x + 1, np.random.default_rng(3))
    assert sorted(made.sources) == list(range(40))
    assert 10 < made.mirror.sum() < 30
    assert 10 < made.shift.any(axis=1).sum() < 30
    assert np.abs(made.shift).max(axis=0).tolist() == [1, 3]  # 6 % of 20 and of 50
    for copy, source, mirror, (down, right) in zip(*vars(made).values(), strict=True):
        wide = np.pad(images[source][:, ::-1] if mirror else images[source], 3, mode="edge")
        np.testing.assert_array_equal(copy, wide[3 - down : 23 - down, 3 - right : 53 - right] + 1)


def test_copies_that_cannot_be_planted_are_refused():
    images = np.zeros((3, 20, 20), np.float32)
    with pytest.raises(DataError, match="4 copies of 3 slices"):
        plant(images, 4, lossy, np.random.default_rng(0))
    with pytest.raises(ShapeError, match="crop them to the input size"):
        plant(images, 3, lambda x: x[:, :-1], np.random.default_rng(0))


def likelihoods(patients, lift, seed):
    draw = np.random.default_rng(seed)
    values = lift + np.repeat(draw.normal(size=patients), 8) + 0.3 * draw.normal(size=8 * patients)
    return values, [f"patient-{seed}-{i:04d}" for i in range(patients) for _ in range(8)]


def test_likelihoods_that_know_the_training_slices_tell_them():
    knows = membership(*likelihoods(40, 2.0, 1), *likelihoods(12, 0.0, 2), seed=0)
    nothing = membership(*likelihoods(40, 0.0, 1), *likelihoods(12, 0.0, 2), seed=0)
    assert knows.interval[0] > 0.75
    assert nothing.interval[0] < 0.5 < nothing.interval[1]
    assert (knows.training_patients, knows.held_out_patients) == (40, 12)


def test_membership_by_hand():
    # Of 2 × 3 pairs the training slice wins 4, and one is a tie.
    result = membership(np.array([2.0, 5.0]), ["a", "b"], np.array([1.0, 2.0, 3.0]), ["c", "d", "d"], seed=0)
    assert result.auc == pytest.approx(4.5 / 6)
    # Resamples hold a or b alone, or both; of c and d alike. Worst is a against d: a tie and a loss.
    assert result.interval == pytest.approx((0.25, 1.0))


def test_one_patient_has_an_area_without_an_interval():
    assert membership(np.ones(3), ["a"] * 3, np.zeros(2), ["b", "c"], seed=0).interval is None


def test_likelihoods_that_mean_nothing_are_refused():
    with pytest.raises(DataError, match="0 log-likelihoods of training"):
        membership(np.zeros(0), [], np.zeros(1), ["a"], seed=0)
    with pytest.raises(DataError, match="1 log-likelihoods of held-out slices with 1 patients, 1 not finite"):
        membership(np.zeros(1), ["a"], np.array([np.nan]), ["b"], seed=0)
    with pytest.raises(DataError, match="2 log-likelihoods of training slices with 1 patients"):
        membership(np.zeros(2), ["a"], np.zeros(1), ["b"], seed=0)


@pytest.mark.parametrize(
    ("exceeding", "detected", "expected"),
    [(0, 1.0, 1 - 0.05**0.01), (0, 0.5, 2 * (1 - 0.05**0.01)), (0, 0.0, 1), (100, 1.0, 1)],
)
def test_without_any_beyond_the_share_left_open_is_in_closed_form(exceeding, detected, expected):
    # All of 100 samples miss a share p of copies with probability (1 - p)^100: .05 at the upper end.
    assert _max_copy_share(exceeding, 100, detected) == pytest.approx(expected)

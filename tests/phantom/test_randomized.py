"""Phantoms of random contrast: reproducible, varied, readable as any other data set."""

from functools import lru_cache

import numpy as np
import pytest

from slicebook.cli import main
from slicebook.data.dataset import PreparedData
from slicebook.errors import ConfigError
from slicebook.phantom import randomized, simulator
from slicebook.phantom.labels import BLADDER, BODY

SIZE = (64, 48)


@lru_cache
def volume(patient, week=0, seed=42):
    return randomized.random_volume(patient, week, seed=seed, slices=6, shape=SIZE)


def test_the_same_arguments_make_the_same_volume():
    again = randomized.random_volume(4, 0, slices=6, shape=SIZE)
    assert np.array_equal(again.image, volume(4).image)
    assert np.array_equal(again.labels, volume(4).labels)


@pytest.mark.parametrize("other", [(5, 0, 42), (4, 1, 42), (4, 0, 43)])
def test_patient_week_and_seed_each_make_another(other):
    assert not np.array_equal(volume(*other).image, volume(4).image)


@pytest.mark.parametrize("patient", range(4, 12))
def test_values_are_those_of_a_stored_magnitude_image(patient):
    image = volume(patient).image
    assert image.shape == (*SIZE, 6)
    assert image.dtype == np.float32
    assert (image >= 0).all()
    assert np.array_equal(image, np.rint(image))
    assert image.std() > 10
    assert all(image[:, :, index].std() > 0 for index in range(6))


def test_every_fourth_patient_shows_shapes_without_labels():
    with_labels = [bool(volume(patient).labels.any()) for patient in range(12)]
    assert with_labels == [patient % 4 != 3 for patient in range(12)]


def test_labels_follow_the_anatomy_through_the_window():
    """The bladder is one piece of signal: its pixels differ less than those of the body around it."""
    checked = 0
    for patient in (4, 5, 6, 8, 9, 10, 12, 13):
        signal, labels = volume(patient).image, volume(patient).labels
        for index in range(6):
            bladder = signal[:, :, index][labels[:, :, index] == BLADDER]
            body = signal[:, :, index][labels[:, :, index] == BODY]
            if len(bladder) > 40 and len(body) > 40:
                checked += bladder.std() < body.std()
                checked -= bladder.std() >= body.std()
    assert checked > 5


def test_contrasts_are_not_those_of_the_pelvis_alone():
    """Urine is bright in T2: at random it is brighter than the body in some, darker in others."""
    brighter = []
    for patient in range(4, 40):
        if patient % 4 == 3:
            continue
        made = volume(patient)
        bladder, body = (made.image[made.labels == label] for label in (BLADDER, BODY))
        if len(bladder) > 20:
            brighter.append(np.median(bladder) > np.median(body))
    assert 0.15 < np.mean(brighter) < 0.95


def test_all_planes_occur():
    """Draws of many patients: the axial scene is wider than the others are high."""
    shapes = {randomized._pelvis(p, 0, 1, 4, np.random.default_rng([p]))[0][0].shape for p in range(12)}
    assert len(shapes) == 3


@pytest.mark.parametrize("effect", [randomized._metal, randomized._ghosts])
def test_an_artefact_changes_a_slice_and_stays_finite(effect):
    image = np.full((40, 30), 0.5, np.float32)
    image[10:20] = 1
    changed = effect(image, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert np.isfinite(changed).all()
    assert not np.array_equal(changed, image)


def acquired(image, **settings):
    settings = {"level": 0.0, "varying": False, "share": 1.0} | settings
    return randomized._acquired(image, **settings, rng=np.random.default_rng(0))


def test_unacquired_frequencies_remove_detail_and_keep_the_mean():
    image = np.random.default_rng(0).uniform(1, 2, (40, 30)).astype(np.float32)
    low = acquired(image, share=0.5)
    assert low.mean() == pytest.approx(image.mean(), rel=0.02)
    assert np.abs(np.diff(low, axis=0)).mean() < 0.7 * np.abs(np.diff(image, axis=0)).mean()
    assert np.array_equal(acquired(image), image)


def test_noise_is_rician_and_has_the_acquired_frequencies_only():
    nothing = np.zeros((200, 100), np.float32)
    noise = acquired(nothing, level=0.1)
    assert noise.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    assert noise.std() == pytest.approx(0.1 * np.sqrt(2 - np.pi / 2), rel=0.02)

    def neighbours(image):
        return np.corrcoef(image[1:].ravel(), image[:-1].ravel())[0, 1]

    assert abs(neighbours(noise)) < 0.03
    assert neighbours(acquired(nothing, level=0.1, share=0.5)) > 0.25


def test_air_is_exactly_zero_in_some_volumes_only():
    shares = [
        (randomized.random_volume(patient, 0, seed=7, slices=4, shape=(64, 64)).image == 0).mean()
        for patient in range(40)
    ]
    assert sum(share > 0.1 for share in shares) >= 5
    assert sum(share < 0.01 for share in shares) >= 15


def test_numbers_that_no_volume_has_are_refused():
    with pytest.raises(ConfigError, match="numbers of 0 or more"):
        randomized.random_volume(-1, 0)
    with pytest.raises(ConfigError, match="at least 4 slices"):
        randomized.random_volume(0, 0, slices=2)


def test_the_command_writes_a_set_that_prepare_reads(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "prepared"
    options = ["--patients", "2", "1", "1", "--slices", "4", "--size", "48", "64", "--seed", "3"]
    assert main.main(["phantom", "--randomise", "-o", str(raw), *options]) == 0
    assert main.main(["prepare", str(raw), "-o", str(out)]) == 0
    assert PreparedData.open(out).info.counts["train"].slices == 8
    plain = simulator.patient_volume(4, 0, seed=3, slices=4, shape=(64, 48))
    assert not np.array_equal(
        randomized.random_volume(4, 0, seed=3, slices=4, shape=(64, 48)).image, plain.image
    )

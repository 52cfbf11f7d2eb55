"""Spectra and intensities are what they are called, and blur, noise and fog show beside real patients."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.spectra import compare_intensities, compare_spectra, histograms, spectra


def slices(n=40, seed=0, shape=(32, 48), patients=None):
    """Smooth pictures with a little noise, the patients of unlike brightness."""
    draw = np.random.default_rng(seed)
    smooth = gaussian_filter(draw.normal(size=(n, *shape)), (0, 3, 3))
    levels = 0.02 * draw.normal(size=patients or n).repeat(n // (patients or n))
    noisy = 0.5 + smooth + levels[:, None, None] + 0.02 * draw.normal(size=smooth.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


PATIENTS = [f"patient-{i // 5:04d}" for i in range(40)]


def test_white_noise_is_flat_at_its_variance():
    noise = 0.5 + 0.05 * np.random.default_rng(0).normal(size=(60, 64, 32))
    decibels = spectra(noise.astype(np.float32)).mean(axis=0)
    assert decibels.shape == (16,)
    # A logarithm of a mean of few waves is a little low: of 31 in the fifth ring, by 0.1 dB or more.
    np.testing.assert_allclose(decibels[4:], 20 * np.log10(0.05), atol=0.4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_lies_in_the_ring_of_its_frequency(axis):
    # 0.25 cycles a pixel, down or across, of a slice with sides that differ.
    along = np.arange((64, 32)[axis])
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 0.25 * along)
    image = np.broadcast_to(wave[:, None] if axis == 0 else wave[None], (64, 32)).astype(np.float32)
    curves = compare_spectra(np.stack([image] * 4), np.stack([image] * 4), [*"aabb"], seed=0, draws=2)
    assert curves.at[int(np.argmax(curves.generated))] == 0.25
    assert curves.at[-1] == 0.5
    assert curves.distance.generated == 0


def test_twice_the_contrast_is_six_decibels_everywhere():
    real = slices()
    curves = compare_spectra((0.25 + real / 2).astype(np.float32), real, PATIENTS, seed=0, draws=3)
    # Each draw has other slices on the two sides; all together they are the same ones.
    np.testing.assert_allclose(np.subtract(curves.real, curves.generated), 20 * np.log10(2), atol=0.01)
    assert curves.distance.generated == pytest.approx(20 * np.log10(2), abs=0.5)


def test_a_blank_slice_has_a_spectrum_and_a_histogram():
    blank = np.full((2, 16, 16), 0.5, np.float32)
    assert (spectra(blank) == -80).all()
    assert (histograms(blank)[:, 128] == 1).all()


def test_blur_and_noise_are_farther_than_real_patients():
    real = slices(patients=8)
    same = slices(seed=1, patients=8)
    blurred = gaussian_filter(same, (0, 1, 1))
    noisy = np.clip(same + 0.03 * np.random.default_rng(2).normal(size=same.shape), 0, 1).astype(np.float32)
    fair, soft, rough = (
        compare_spectra(images, real, PATIENTS, seed=0, draws=20) for images in (same, blurred, noisy)
    )
    assert fair.distance.generated <= fair.distance.real_range[1]
    assert soft.distance.interval[0] > soft.distance.real_range[1]
    assert rough.distance.interval[0] > rough.distance.real_range[1]
    assert soft.generated[-1] < soft.real_low[-1] < soft.real_high[-1] < rough.generated[-1]


def test_the_distance_of_intensities_is_wassersteins():
    real, other = slices(), slices(seed=1) ** 2
    curves = compare_intensities(other, real, PATIENTS, seed=0, draws=1)
    assert sum(curves.real) == pytest.approx(1)
    expected = wasserstein_distance(real.ravel(), other.ravel())
    apart = np.abs(np.cumsum(np.subtract(curves.generated, curves.real))).sum() / len(curves.at)
    assert apart == pytest.approx(expected, rel=0.02)


def test_the_band_is_that_of_the_bins_that_are_drawn():
    real = slices(patients=8)
    curves = compare_intensities(real, real, PATIENTS, seed=0, draws=1)
    edges = np.linspace(0, 1, len(curves.at) + 1)
    means = [
        np.histogram(real[np.asarray(PATIENTS) == name], edges)[0] / real[0].size / PATIENTS.count(name)
        for name in set(PATIENTS)
    ]
    assert curves.real_high == pytest.approx(np.quantile(means, 0.95, axis=0), abs=1e-12)


def test_fog_shifts_intensities_by_as_much():
    real = np.float32(0.8) * slices(patients=8)
    curves = compare_intensities(real + np.float32(0.125), real, PATIENTS, seed=0, draws=20)
    assert curves.distance.generated == pytest.approx(0.125, abs=0.02)
    assert curves.distance.interval[0] > curves.distance.real_range[1]


@pytest.mark.parametrize("compare", [compare_spectra, compare_intensities])
def test_what_cannot_be_compared_is_refused(compare):
    real = slices()
    broken = real.copy()
    broken[3, 0, 0] = np.inf
    with pytest.raises(DataError, match="slice 3 has values that are not finite"):
        compare(broken, real, PATIENTS, seed=0)
    with pytest.raises(DataError, match="1 held-out patient, wanted at least 2"):
        compare(real, real, ["one"] * 40, seed=0)
    with pytest.raises(DataError, match="0 slices per group"):
        compare(real[:0], real, PATIENTS, seed=0)
    with pytest.raises(ShapeError, match="39 patients for 40 real slices"):
        compare(real, real, PATIENTS[1:], seed=0)


def test_spectra_of_two_sizes_are_refused():
    with pytest.raises(ShapeError, match="generated slices are 48×32, real ones 32×48"):
        compare_spectra(slices(shape=(48, 32)), slices(), PATIENTS, seed=0)
    with pytest.raises(ShapeError, match="sides of at least 8"):
        spectra(np.zeros((1, 7, 20), np.float32))

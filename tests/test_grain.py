"""The noise of a slice: measured, and taken away while edges stay."""

import math

import pytest
import torch

from slicebook.grain import SMALLEST, noise_level, smooth


def noise(sigma, shape=(1, 1, 96, 128), seed=0):
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(height=1.0, side=48):
    """A slice that jumps from -height/2 to height/2 in its middle column."""
    image = torch.full((1, 1, side, side), -height / 2)
    image[..., side // 2 :] = height / 2
    return image


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_the_level_of_white_noise_is_its_standard_deviation(sigma):
    assert float(noise_level(noise(sigma))) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("way", ["rows", "columns", "both"])
def test_a_smooth_surface_has_no_noise(way):
    ramp = torch.linspace(-1, 1, 64)
    image = {
        "rows": ramp[:, None].expand(64, 64),
        "columns": ramp.expand(64, 64),
        "both": (ramp + ramp[:, None]) / 2,
    }[way]
    assert float(noise_level(image[None, None])) == pytest.approx(0, abs=1e-6)


def test_a_straight_edge_has_no_noise():
    assert float(noise_level(step())) == pytest.approx(0, abs=1e-6)


def test_noise_on_a_slice_is_told_from_the_slice():
    assert float(noise_level(step(side=128) + noise(0.05, (1, 1, 128, 128)))) == pytest.approx(0.05, rel=0.05)


def test_each_slice_has_a_level_of_its_own():
    found = noise_level(torch.cat([noise(0.1), noise(0.3, seed=1)]))
    assert found.tolist() == pytest.approx([0.1, 0.3], rel=0.05)


def test_smoothing_takes_noise_away():
    image = noise(0.1)
    assert smooth(image, 2.0).std() < 0.35 * image.std()


def test_more_strength_takes_more_away():
    left = [float(smooth(noise(0.1), strength).std()) for strength in (0.5, 1, 2, 4)]
    assert left == sorted(left, reverse=True)


def test_smoothing_keeps_edges():
    found = smooth(step() + noise(0.03, (1, 1, 48, 48)), 2.0)
    jump = found[..., 24].mean() - found[..., 23].mean()
    assert float(jump) == pytest.approx(1, abs=0.05)


def test_smoothing_moves_no_intensity():
    image = 0.3 + noise(0.1)
    assert float(smooth(image, 2.0).mean()) == pytest.approx(float(image.mean()), abs=1e-3)


def test_a_slice_without_noise_stays_as_it_is():
    image = step()
    assert torch.allclose(smooth(image, 2.0), image, atol=10 * SMALLEST**2)


def test_each_slice_is_smoothed_by_its_own_noise():
    pair = torch.cat([noise(0.05), noise(0.4, seed=1)])
    assert torch.allclose(smooth(pair, 1.0)[:1], smooth(pair[:1], 1.0), atol=1e-6)


def test_a_window_is_the_guided_filters():
    """One pixel by hand, far from the rim: eqs. 5, 6 and 8 over windows of 5×5."""
    image = noise(0.2, (1, 1, 15, 15))
    level = float(noise_level(image)) ** 2
    plane = image[0, 0].double()
    slopes, offsets = [], []
    for row in range(5, 10):
        for column in range(5, 10):
            window = plane[row - 2 : row + 3, column - 2 : column + 3]
            slope = window.var(unbiased=False) / (window.var(unbiased=False) + level)
            slopes.append(float(slope))
            offsets.append(float(window.mean() * (1 - slope)))
    wanted = math.fsum(slopes) / 25 * float(plane[7, 7]) + math.fsum(offsets) / 25
    assert float(smooth(image, 1.0)[0, 0, 7, 7]) == pytest.approx(wanted, abs=1e-5)

"""The noise of slices: measured, removed with edges kept, and added."""

import math

import pytest
import torch

from slicebook.models.noise import SMALLEST, denoise, noise_level


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


def test_noise_is_separated_from_the_slice():
    assert float(noise_level(step(side=128) + noise(0.05, (1, 1, 128, 128)))) == pytest.approx(0.05, rel=0.05)


def test_a_level_can_be_that_of_a_part():
    pair = torch.cat([noise(0.1), noise(0.3, seed=1)], -1)
    left = torch.zeros(pair.shape, dtype=torch.bool)
    left[..., :128] = True
    assert float(noise_level(pair, left)) == pytest.approx(0.1, rel=0.05)
    assert float(noise_level(pair, ~left)) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noise_level(pair, torch.ones_like(left)), noise_level(pair))
    assert float(noise_level(pair, torch.zeros_like(left))) == 0


def test_each_slice_has_a_level_of_its_own():
    levels = noise_level(torch.cat([noise(0.1), noise(0.3, seed=1)]))
    assert levels.tolist() == pytest.approx([0.1, 0.3], rel=0.05)


def test_denoising_removes_noise():
    image = noise(0.1)
    assert denoise(image, 2.0).std() < 0.35 * image.std()


def test_more_strength_removes_more():
    left = [float(denoise(noise(0.1), strength).std()) for strength in (0.5, 1, 2, 4)]
    assert left == sorted(left, reverse=True)


def test_denoising_keeps_edges():
    denoised = denoise(step() + noise(0.03, (1, 1, 48, 48)), 2.0)
    jump = denoised[..., 24].mean() - denoised[..., 23].mean()
    assert float(jump) == pytest.approx(1, abs=0.05)


def test_denoising_keeps_the_mean_intensity():
    image = 0.3 + noise(0.1)
    assert float(denoise(image, 2.0).mean()) == pytest.approx(float(image.mean()), abs=1e-3)


def test_a_slice_without_noise_stays_as_it_is():
    image = step()
    assert torch.allclose(denoise(image, 2.0), image, atol=10 * SMALLEST**2)


def test_each_slice_is_denoised_by_its_own_noise():
    pair = torch.cat([noise(0.05), noise(0.4, seed=1)])
    assert torch.allclose(denoise(pair, 1.0)[:1], denoise(pair[:1], 1.0), atol=1e-6)


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
    assert float(denoise(image, 1.0)[0, 0, 7, 7]) == pytest.approx(wanted, abs=1e-5)

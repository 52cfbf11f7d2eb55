"""The noise of slices: measured, removed with edges kept, and added."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from slicebook.models.noise import REACH, SMALLEST, denoise, fit_noise_model, noise_level


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


def halves():
    """A slice dark on the left and bright on the right."""
    flat = torch.full((1, 1, 96, 128), -0.5)
    flat[..., 64:] = 0.5
    return flat


def bright_noise():
    """Slices, twice as noisy where they are bright, and the same without their noise."""
    flat = halves()
    return [(flat + (0.03 + 0.02 * flat) * noise(1.0, seed=seed), flat) for seed in range(6)]


def array(image):
    return image[0, 0].numpy()


def test_the_noise_model_learns_noise_by_intensity():
    noise_model = fit_noise_model(bright_noise(), 2.0)
    dark, bright = (
        np.interp(at, np.linspace(-1, 1, len(noise_model.spread)), noise_model.spread) for at in (-0.5, 0.5)
    )
    assert bright / dark == pytest.approx(2, rel=0.1)
    assert bright * noise_model.level(array(halves()), 3) == pytest.approx(0.04, rel=0.15)
    assert noise_model.deviations == tuple(sorted(noise_model.deviations))


def contrasted(height):
    return height * halves()


def test_a_slice_of_more_contrast_gets_more_noise_where_training_slices_did():
    heights = (0.2, 0.5, 1.0, 1.5)
    pairs = [(contrasted(h) + noise(0.04 * h, seed=k), contrasted(h)) for k, h in enumerate(heights)]
    noise_model = fit_noise_model(pairs, 2.0)
    assert noise_model.slope == pytest.approx(1, abs=0.1)
    for height in (0.3, 1.2):
        assert noise_model.level(array(contrasted(height)), 0) == pytest.approx(0.04 * height, rel=0.15)


def test_texture_of_a_decoder_makes_no_sample_noisier():
    heights = (0.2, 0.5, 1.0, 1.5)
    pairs = [(contrasted(h) + noise(0.04 * h, seed=k), contrasted(h)) for k, h in enumerate(heights)]
    noise_model = fit_noise_model(pairs, 2.0)
    failed = contrasted(0.3) + noise(0.06, seed=9)
    assert noise_model.level(array(failed), 0) == pytest.approx(
        noise_model.level(array(contrasted(0.3)), 0), rel=0.15
    )


def test_added_noise_is_like_the_measured_noise():
    noise_model = fit_noise_model(bright_noise(), 2.0)
    flat = array(halves())
    noisy = noise_model.add_noise(flat, noise_model.level(flat, 3), 3) - flat
    assert noisy[:, :64].std() == pytest.approx(0.02, rel=0.2)
    assert noisy[:, 64:].std() == pytest.approx(0.04, rel=0.2)
    assert abs(noisy.mean()) < 0.003


def test_added_noise_has_the_measured_correlation():
    draw = np.random.default_rng(0)
    slices = [
        torch.from_numpy(gaussian_filter(draw.normal(0, 0.2, (96, 96)), 0.8))[None, None] for _ in "abcd"
    ]
    noise_model = fit_noise_model([(image, torch.zeros_like(image)) for image in slices], 4.0)
    beside = noise_model.correlation[REACH][REACH + 1]
    assert beside > 0.3
    noisy = noise_model.add_noise(np.zeros((200, 200), dtype=np.float32), 0.05, 0)
    assert np.corrcoef(noisy[:, 1:].ravel(), noisy[:, :-1].ravel())[0, 1] == pytest.approx(beside, abs=0.1)


@pytest.mark.parametrize("own", [0.0, 0.03, 0.06])
def test_only_noise_that_a_reconstruction_lacks_is_added(own):
    """Variances of independent noise add up to that of the slices, whatever the decoder draws by itself."""
    images, flat = noise(0.08, (8, 1, 64, 64)), torch.zeros(8, 1, 64, 64)
    drawn = flat + noise(own, (8, 1, 64, 64), seed=1)
    noise_model = fit_noise_model([(images, drawn)], 3.0)
    again = [
        noise_model.add_noise(array(image), noise_model.level(array(image), seed), seed)
        for seed, image in enumerate(drawn[:, None])
    ]
    assert np.std(again) == pytest.approx(0.08, rel=0.05)


def test_only_noise_that_decoded_samples_lack_is_added():
    images, samples = noise(0.08, (8, 1, 64, 64)), noise(0.05, (8, 1, 64, 64), seed=1)
    noise_model = fit_noise_model([(images, torch.zeros(8, 1, 64, 64))], 3.0, [samples])
    again = [noise_model.add_noise(array(image), 0.08, seed) for seed, image in enumerate(samples[:, None])]
    assert np.std(again) == pytest.approx(0.08, rel=0.05)


def test_an_edge_in_a_decoded_image_is_no_texture():
    pairs = [(halves() + noise(0.05, seed=seed), halves()) for seed in range(4)]
    assert max(fit_noise_model(pairs, 2.0, [halves()]).texture) < 1e-3


def test_a_reconstruction_rougher_than_the_slices_gets_no_noise():
    noise_model = fit_noise_model([(noise(0.02, (8, 1, 64, 64)), noise(0.04, (8, 1, 64, 64), seed=1))], 3.0)
    image = np.zeros((32, 32), np.float32)
    assert (noise_model.add_noise(image, 0.02, 0) == image).all()
    louder = noise_model.add_noise(image, 0.05, 0)  # variances add up: 3, 4, 5
    assert louder.std() == pytest.approx(0.03, rel=0.1)


def test_contrast_and_level_are_clamped_to_the_measured_range():
    heights = (0.2, 0.5, 1.0)
    pairs = [(contrasted(h) + noise(0.04 * h, seed=k), contrasted(h)) for k, h in enumerate(heights)]
    noise_model = fit_noise_model(pairs, 2.0)
    most = noise_model.level(array(contrasted(1.0)), 0)
    assert noise_model.level(array(contrasted(2.0)), 0) == pytest.approx(most)
    assert noise_model.level(np.zeros((9, 9), dtype=np.float32), 0) == pytest.approx(0.008, rel=0.15)
    wild = noise_model.model_copy(update={"deviations": (-9.0, 9.0)})
    levels = [wild.level(array(contrasted(1.0)), seed) for seed in range(20)]
    assert (min(levels), max(levels)) == pytest.approx(tuple(map(math.exp, noise_model.bounds)))


@pytest.mark.parametrize("count", [1, 7])
def test_equal_reconstructions_give_no_slope(count):
    pairs = [(noise(0.05, seed=seed), torch.zeros(1, 1, 96, 128)) for seed in range(count)]
    noise_model = fit_noise_model(pairs, 2.0)
    assert noise_model.slope == 0
    assert noise_model.level(array(noise(0.2)), 0) == pytest.approx(0.05, rel=0.1)


def test_noise_depends_on_its_seed_only():
    noise_model = fit_noise_model(bright_noise(), 2.0)
    image = np.zeros((40, 24), dtype=np.float32)
    assert np.array_equal(noise_model.add_noise(image, 0.1, 5), noise_model.add_noise(image, 0.1, 5))
    assert not np.array_equal(noise_model.add_noise(image, 0.1, 5), noise_model.add_noise(image, 0.1, 6))
    assert noise_model.level(image, 5) == noise_model.level(image, 5) != noise_model.level(image, 6)


def test_no_noise_level_leaves_a_slice_as_it_is_and_a_high_one_leaves_no_bounds():
    noise_model = fit_noise_model(bright_noise(), 2.0)
    image = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)  # smaller than the correlation's window
    assert np.array_equal(noise_model.add_noise(image, 0.0, 1), image)
    assert np.abs(noise_model.add_noise(image, 5.0, 1)).max() == 1


def test_blank_slices_have_no_noise():
    noise_model = fit_noise_model([(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16))], 2.0)
    blank = np.zeros((16, 16), dtype=np.float32)
    assert not noise_model.add_noise(blank, noise_model.level(blank, 0), 0).any()

"""Random contrast of training slices: reproducible, in range, and of the strength that was set."""

import pytest
import torch

from slicebook.config import ContrastConfig
from slicebook.data.augment import randomise_contrast

STILL = ContrastConfig(probability=1, bias=0, blur=0, noise=0)


def slices(count=6, size=(40, 32)):
    """Smooth slices in [-1, 1], with air in a corner."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 1, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-0.9, 0.9)
    images[..., :8, :8] = -1
    return images


def changed(config, seed=0):
    return randomise_contrast(slices(), config, torch.Generator().manual_seed(seed))


def test_the_generator_decides():
    config = ContrastConfig()
    assert changed(config).equal(changed(config))
    assert not changed(config).equal(changed(config, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_values_stay_in_range(seed):
    strong = ContrastConfig(probability=1, bias=0.9, blur=3, noise=0.5)
    values = changed(strong, seed)
    assert values.isfinite().all()
    assert values.min() >= -1
    assert values.max() <= 1


def test_only_the_share_is_changed():
    assert changed(ContrastConfig(probability=0)).equal(slices())
    images = slices(400)
    after = randomise_contrast(images, ContrastConfig(probability=0.3), torch.Generator().manual_seed(0))
    share = (after != images).flatten(1).any(1).float().mean()
    assert share == pytest.approx(0.3, abs=0.08)


def test_the_curve_alone_maps_equal_values_to_equal_values():
    """A slice of two gray values has two afterwards, stretched to the whole range; air stays."""
    images = torch.full((1, 1, 16, 16), -0.4)
    images[..., 8:] = 0.3
    images[..., :2, :2] = -1
    after = randomise_contrast(images, STILL, torch.Generator().manual_seed(5))
    assert after[..., 4:8, :8].std() < 1e-3
    assert after[..., 8:].std() < 1e-3
    assert after[..., 4, 4] != pytest.approx(float(after[..., 4, 12]), abs=0.1)
    assert (after[..., :1, :1] < -0.9).all()


def test_curves_may_swap_tissues():
    """Without monotone curves, the darker of two tissues becomes the brighter in many slices."""
    images = torch.full((200, 1, 16, 16), -0.4)
    images[..., 8:] = 0.3
    after = randomise_contrast(images, STILL, torch.Generator().manual_seed(5))
    swapped = (after[..., 4] > after[..., 12]).flatten(1).float().mean()
    assert 0.2 < swapped < 0.8


def test_blur_removes_detail_and_noise_adds_it():
    def roughness(config):
        images = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
        after = randomise_contrast(images, config, torch.Generator().manual_seed(2))
        return float(after.diff(dim=-1).abs().mean())

    plain = roughness(STILL)
    assert roughness(STILL.model_copy(update={"blur": 3.0})) < 0.7 * plain
    flat = torch.zeros(8, 1, 64, 64)
    noisy = randomise_contrast(
        flat, STILL.model_copy(update={"noise": 0.06}), torch.Generator().manual_seed(2)
    )
    assert 0 < float(noisy.std((2, 3)).max()) < 0.14  # [-1, 1] doubles it


def test_the_bias_field_is_smooth():
    flat = torch.full((1, 1, 64, 64), 0.2)
    flat[..., 32:] = 0.4
    config = STILL.model_copy(update={"bias": 0.45})
    before = randomise_contrast(flat, STILL, torch.Generator().manual_seed(4))
    after = randomise_contrast(flat, config, torch.Generator().manual_seed(4))
    ratio = ((after + 1) / (before + 1).clamp(min=1e-3))[..., 40:]
    assert ratio.std() > 0.01
    assert ratio.diff(dim=-2).abs().max() < 0.1

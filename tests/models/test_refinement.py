"""The search for better tokens."""

from typing import Any

import pytest
import torch

from slicebook.config import LossConfig, TokenizerConfig
from slicebook.errors import ConfigError
from slicebook.models.losses import loss
from slicebook.models.refinement import BATCH_PIXELS, encode_refined
from slicebook.models.tokenizer import Reconstruction, Tokenizer

LOSS = LossConfig()
SIZES: dict[str, Any] = {"scaling_rates": (4, 2), "codebook_sizes": (16, 8), "code_dim": 4, "width": 16}


def smooth_slices(batch, rows=32, columns=32, seed=0):
    """Smooth random slices in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 1, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic").clamp(-1, 1)


def untrained(architecture="ladder", **settings):
    """A tokenizer in evaluation mode whose codebooks are the k-means of random slices."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(architecture=architecture, **(SIZES | settings)))
    tokenizer.init_from_kmeans(smooth_slices(8), torch.Generator().manual_seed(0))
    return tokenizer.eval()


@pytest.fixture
def tokenizer():
    return untrained()


def losses(tokenizer, images, tokens):
    drawn, zero = tokenizer.decode(tokens, images.shape[-2:]), torch.zeros(())
    return [
        float(loss(Reconstruction(d[None], (), zero), x[None], LOSS).total)
        for d, x in zip(drawn, images, strict=True)
    ]


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
@pytest.mark.parametrize("size", [(32, 32), (29, 43)])
def test_every_slice_is_drawn_at_least_as_well_and_most_are_drawn_better(architecture, size):
    tokenizer, images = untrained(architecture), smooth_slices(6, size[0], size[1], seed=1)
    before = losses(tokenizer, images, tokenizer.encode(images))
    after = losses(tokenizer, images, encode_refined(tokenizer, images, LOSS, 20))
    assert all(new <= old for new, old in zip(after, before, strict=True))
    assert sum(new < old for new, old in zip(after, before, strict=True)) >= 4


def test_no_step_is_plain_encoding(tokenizer):
    images = smooth_slices(2)
    for grid, wanted in zip(
        encode_refined(tokenizer, images, LOSS, 0), tokenizer.encode(images), strict=True
    ):
        assert torch.equal(grid, wanted)


def test_tokens_do_not_depend_on_the_batch(tokenizer, monkeypatch):
    images = smooth_slices(5, seed=2)
    whole = encode_refined(tokenizer, images, LOSS, 8)
    monkeypatch.setattr("slicebook.models.refinement.BATCH_PIXELS", 2 * 32 * 32)
    parts = encode_refined(tokenizer, images, LOSS, 8)
    alone = encode_refined(tokenizer, images[3:4], LOSS, 8)
    for level in range(2):
        assert torch.equal(whole[level], parts[level])
        assert torch.equal(whole[level][3:4], alone[level])


def test_it_works_in_inference_mode_and_leaves_the_weights_alone(tokenizer):
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with torch.inference_mode():
        images = smooth_slices(2)
        inside = encode_refined(tokenizer, images, LOSS, 5)
    outside = encode_refined(tokenizer, smooth_slices(2), LOSS, 5)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert all(torch.equal(before[name], value) for name, value in tokenizer.state_dict().items())
    assert all(parameter.grad is None for parameter in tokenizer.parameters())


def test_a_codebook_smaller_than_the_candidates_is_searched_whole():
    tokenizer = untrained(codebook_sizes=(4, 2))
    grids = encode_refined(tokenizer, smooth_slices(2), LOSS, 5)
    assert [int(grid.max()) < size for grid, size in zip(grids, (4, 2), strict=True)] == [True, True]


def test_a_slice_larger_than_the_batch_is_searched_alone(tokenizer, monkeypatch):
    monkeypatch.setattr("slicebook.models.refinement.BATCH_PIXELS", 10)
    assert BATCH_PIXELS > 10
    assert encode_refined(tokenizer, smooth_slices(2), LOSS, 1)[0].shape == (2, 8, 8)


def test_label_masks_and_negative_steps_are_refused(tokenizer):
    masks = Tokenizer(TokenizerConfig(label_values=(0, 1), **SIZES)).eval()
    with pytest.raises(ConfigError, match="a tokenizer of label masks, wanted 0 or more steps"):
        encode_refined(masks, smooth_slices(1), LOSS, 1)
    with pytest.raises(ConfigError, match="found -1 steps"):
        encode_refined(tokenizer, smooth_slices(1), LOSS, -1)

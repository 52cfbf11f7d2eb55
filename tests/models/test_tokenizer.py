"""The hierarchical tokenizer: grids, bits, any size, both ways, and its loss."""

from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from slicebook.config import LossConfig, TokenizerConfig
from slicebook.errors import DataError, ShapeError
from slicebook.models.losses import loss, ssim
from slicebook.models.tokenizer import Reconstruction, Tokenizer, draw_dropped_levels
from slicebook.recipes import load_recipe

ARCHITECTURES = ("ladder", "vqvae2")


def small(architecture="ladder", **settings):
    """An untrained tokenizer in evaluation mode, whose levels all have something to say."""
    defaults: dict[str, Any] = {
        "scaling_rates": (4, 2),
        "codebook_sizes": (16, 8),
        "code_dim": 4,
        "width": 16,
    }
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(architecture=architecture, **(defaults | settings)))
    tokenizer.init_from_kmeans(slices(8), torch.Generator().manual_seed(0))
    return tokenizer.eval()


def slices(batch, rows=32, columns=32, seed=0):
    """Smooth random slices in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 1, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic").clamp(-1, 1)


# --- Grids and bits


@pytest.mark.parametrize(
    ("size", "grids", "tokens"),
    [
        ((256, 256), ((32, 32), (8, 8), (4, 4)), 1104),
        ((256, 128), ((32, 16), (8, 4), (4, 2)), 552),
        ((256, 144), ((32, 24), (8, 6), (4, 3)), 828),
        ((97, 61), ((16, 8), (4, 2), (2, 1)), 138),
        ((1, 1), ((8, 8), (2, 2), (1, 1)), 69),
    ],
)
def test_the_grids_of_a_slice_by_hand(size, grids, tokens):
    tokenizer = Tokenizer(
        TokenizerConfig(scaling_rates=(8, 4, 2), width=16, codebook_sizes=(1024, 1024, 1024))
    )
    assert tokenizer.stride == 64
    assert tokenizer.levels == 3
    assert tokenizer.grids(size) == grids
    assert tokenizer.bits(size) == tokens * 10


def test_bits_count_each_level_by_its_own_codebook():
    tokenizer = Tokenizer(TokenizerConfig(scaling_rates=(8, 4, 2), codebook_sizes=(512, 64, 4), width=16))
    assert tokenizer.bits((256, 128)) == 512 * 9 + 32 * 6 + 8 * 2


def test_the_founding_recipe_stretches_so_a_native_slice_costs_as_many_tokens_as_a_square_one():
    with torch.device("meta"):
        tokenizer = Tokenizer(load_recipe("comp3710").tokenizer)
    assert tokenizer.grids((256, 128)) == ((32, 32), (8, 8), (4, 4))
    assert tokenizer.bits((256, 128)) / (256 * 128) == pytest.approx(0.337, abs=5e-4)
    assert tokenizer.bits((256, 256)) / (256 * 256) == pytest.approx(0.168, abs=5e-4)


# --- Any size, both ways


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(97, 61), (3, 5), (72, 40), (8, 8), (1, 1), (256, 144)])
def test_a_slice_of_any_size_comes_back_in_its_size(architecture, size):
    tokenizer = small(architecture)
    images = slices(2, *size)
    output = tokenizer(images)
    assert output.images.shape == images.shape
    assert [grid.shape[1:] for grid in output.tokens] == list(tokenizer.grids(size))
    assert output.images.isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(32, 32), (97, 61), (3, 5)])
def test_decoding_what_was_encoded_is_the_reconstruction(architecture, size):
    tokenizer = small(architecture)
    images = slices(3, *size)
    output = tokenizer(images)
    tokens = tokenizer.encode(images)
    assert all(a.equal(b) for a, b in zip(tokens, output.tokens, strict=True))
    torch.testing.assert_close(tokenizer.decode(tokens, size), output.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_slice_does_not_depend_on_its_batch(architecture):
    tokenizer = small(architecture)
    images = slices(5)
    together = tokenizer(images)
    alone = tokenizer(images[3:4])
    torch.testing.assert_close(together.images[3:4], alone.images, rtol=1e-4, atol=1e-5)
    assert together.tokens[0][3].equal(alone.tokens[0][0])


def test_padding_repeats_the_edge_on_both_sides_and_is_cropped_away(monkeypatch):
    tokenizer = small()
    seen = []
    original = tokenizer.network.features

    def watched(images):
        seen.append(images)
        return original(images)

    monkeypatch.setattr(tokenizer.network, "features", watched)
    image = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 5, 6) / 6
    tokenizer(image)
    assert seen[0].shape == (1, 1, 8, 8)
    assert (seen[0][0, 0, 3] * 6).round().tolist() == [0, 0, 1, 2, 3, 4, 5, 5]
    assert seen[0][..., 1:6, 1:7].equal(image)


def test_the_founding_resize_stretches_and_comes_back_to_native_pixels():
    tokenizer = small("vqvae2", resize=(16, 16))
    images = slices(1, 24, 40)
    output = tokenizer(images)
    assert output.images.shape == images.shape
    assert [grid.shape[1:] for grid in output.tokens] == [(4, 4), (2, 2)]
    torch.testing.assert_close(tokenizer.decode(output.tokens, (24, 40)), output.images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_coarse_levels_alone_hold_the_finer_ones_at_their_mean_code(architecture):
    tokenizer = small(architecture)
    images = slices(2)
    tokens = tokenizer.encode(images)
    coarse = tokenizer.decode(tokens, (32, 32), levels=1)
    other = (torch.zeros_like(tokens[0]), tokens[1])
    assert coarse.equal(tokenizer.decode(other, (32, 32), levels=1))
    assert not coarse.equal(tokenizer.decode(tokens, (32, 32)))
    dropped_levels = torch.tensor([[True, True], [False, False]])
    torch.testing.assert_close(
        tokenizer(images, dropped_levels=dropped_levels).images, coarse, rtol=1e-4, atol=1e-5
    )


def test_grids_that_do_not_fit_the_size_are_refused():
    tokenizer = small()
    tokens = tokenizer.encode(slices(1))
    with pytest.raises(
        ShapeError, match=r"do not fit a slice of 64×32 pixels: wanted \(\(16, 8\), \(8, 4\)\)"
    ):
        tokenizer.decode(tokens, (64, 32))
    with pytest.raises(ShapeError, match="finest first"):
        tokenizer.decode(tokens[::-1], (32, 32))
    with pytest.raises(ShapeError, match="do not fit"):
        tokenizer.decode(tokens[:1], (32, 32))


@pytest.mark.parametrize("token", [-1, 8])
def test_a_token_outside_its_codebook_is_refused(token):
    tokenizer = small()
    tokens = tokenizer.encode(slices(1))
    tokens[1][0, 0, 0] = token
    with pytest.raises(ShapeError, match=r"level 1: .*wanted 0 to 7"):
        tokenizer.decode(tokens, (32, 32))


# --- Training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_level_pulls_on_the_encoder(architecture):
    tokenizer = small(architecture, scaling_rates=(4, 2, 2), codebook_sizes=(8, 8, 8)).train()
    first = next(tokenizer.network.parameters())
    for level in range(3):
        dropped_levels = torch.ones(3, 2, dtype=torch.bool)
        dropped_levels[level] = False  # the picture is drawn from this level alone
        output = tokenizer(slices(2), dropped_levels=dropped_levels)
        (gradient,) = torch.autograd.grad(output.images.square().sum(), [first])
        assert gradient.abs().sum() > 0, level


def test_the_commitment_is_summed_over_levels():
    tokenizer = small()
    commitments = []
    for level in range(2):
        tokenizer.codebook(level).register_forward_hook(
            lambda _m, _i, out: commitments.append(out.commitment)
        )
    total = tokenizer(slices(2)).commitment
    torch.testing.assert_close(total, sum(commitments))


def test_training_teaches_every_codebook_and_evaluation_none():
    tokenizer = small()
    before = [tokenizer.codebook(level).ema_embed_sum.clone() for level in range(2)]
    tokenizer(slices(2, seed=3), reset_dead_codes=True)
    assert all(tokenizer.codebook(level).ema_embed_sum.equal(before[level]) for level in range(2))
    tokenizer.train()(slices(2, seed=3))
    assert not any(tokenizer.codebook(level).ema_embed_sum.equal(before[level]) for level in range(2))


def test_the_start_puts_every_codebook_where_the_latents_are():
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(scaling_rates=(4, 2), codebook_sizes=(16, 8), code_dim=4, width=16))
    before = tokenizer.eval()(slices(8)).commitment
    tokenizer.train().init_from_kmeans(slices(8), torch.Generator().manual_seed(0))
    assert tokenizer.training
    assert tokenizer.eval()(slices(8)).commitment < before / 3
    grids = tokenizer(slices(8)).tokens
    assert [len(grid.unique()) for grid in grids] == [16, 8]


def test_the_finest_level_is_always_dropped_first():
    dropped_levels = draw_dropped_levels(3, 4000, 0.5, torch.Generator().manual_seed(0))
    assert not dropped_levels[2].any()
    assert (dropped_levels[1] <= dropped_levels[0]).all()
    assert dropped_levels[0].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert dropped_levels[1].float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not draw_dropped_levels(3, 100, 0.0, torch.Generator()).any()
    assert not draw_dropped_levels(1, 100, 1.0, torch.Generator()).any()


# --- Loss


@pytest.mark.parametrize("shape", [(11, 11), (32, 20), (97, 61)])
def test_ssim_is_that_of_scikit_image_over_windows_that_lie_inside(shape):
    first, second = ((slices(1, shape[0], shape[1], seed) + 1) / 2 for seed in (0, 1))
    _, similarity = structural_similarity(
        first[0, 0].numpy().astype(np.float64),
        second[0, 0].numpy().astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    inside = similarity[5 : shape[0] - 5, 5 : shape[1] - 5]
    assert ssim(first, second).item() == pytest.approx(inside.mean(), abs=1e-4)


def test_ssim_of_a_slice_with_itself_is_1_and_it_pulls_on_both():
    first, second = slices(1).requires_grad_(True), slices(1, seed=1).requires_grad_(True)
    assert ssim(first, first).item() == pytest.approx(1)
    ssim(first, second).backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0


def test_ssim_of_a_slice_smaller_than_its_window_is_refused():
    with pytest.raises(ShapeError, match=r"a side of 10 pixels .* wanted at least 11"):
        ssim(torch.zeros(1, 1, 32, 10), torch.zeros(1, 1, 32, 10))


def test_the_two_losses_by_hand():
    images, drawn = slices(2), slices(2, seed=1)
    reconstruction = Reconstruction(drawn, (), torch.tensor(0.5))
    similarity = ssim((drawn + 1) / 2, (images + 1) / 2)
    squared = loss(reconstruction, images, LossConfig(kind="mse", commitment=1.0))
    torch.testing.assert_close(squared.total, (drawn - images).square().mean() + 0.5)
    faithful = loss(reconstruction, images, LossConfig(kind="l1_ssim", commitment=0.25))
    torch.testing.assert_close(faithful.reconstruction, (drawn - images).abs().mean() / 2 + 1 - similarity)
    torch.testing.assert_close(faithful.total, faithful.reconstruction + 0.25 * 0.5)
    torch.testing.assert_close(squared.ssim, similarity)


def test_the_loss_is_in_float32_under_autocast():
    images = slices(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small().train()(images)
        total = loss(output, images, LossConfig()).total
    assert total.dtype == torch.float32


# --- At the door of encode and decode

DOOR = TokenizerConfig(scaling_rates=(4, 2), codebook_sizes=(16, 8), code_dim=4, width=16, residual_layers=1)


@pytest.mark.parametrize("kind", ["float64", "numpy", "integers", "float16"])
def test_numbers_of_other_types_are_converted(kind):
    tokenizer = Tokenizer(DOOR).eval()
    slices = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1).round()
    forms: dict[str, Any] = {
        "float64": slices.double(),
        "numpy": slices.double().numpy(),
        "integers": slices.int(),
        "float16": slices.half(),
    }
    for grid, wanted in zip(tokenizer.encode(forms[kind]), tokenizer.encode(slices), strict=True):
        assert torch.equal(grid, wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1000.0])
def test_a_value_that_no_slice_has_never_becomes_a_token(value):
    slices = torch.zeros(2, 1, 16, 16)
    slices[1, 0, 3, 3] = value
    with pytest.raises(DataError, match=r"wanted numbers in \[-1, 1\]"):
        Tokenizer(DOOR).eval().encode(slices)


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (0, 1, 16, 16), (1, 1, 0, 16), (1, 2, 16, 16)])
def test_slices_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError):
        Tokenizer(DOOR).eval().encode(torch.zeros(shape))


def test_token_grids_are_converted_or_refused():
    tokenizer = Tokenizer(DOOR).eval()
    grids = tokenizer.encode(torch.zeros(2, 1, 16, 16))
    wanted = tokenizer.decode(grids, (16, 16))
    stored = [grid.numpy().astype("uint16") for grid in grids]
    assert torch.equal(tokenizer.decode(stored, (16, 16)), wanted)
    with pytest.raises(DataError, match="wanted integers"):
        tokenizer.decode([grid.float() for grid in grids], (16, 16))
    with pytest.raises(ShapeError, match="as many at each level"):
        tokenizer.decode([grids[0][:1], *grids[1:]], (16, 16))
    with pytest.raises(ShapeError, match=r"wanted \(batch, rows, columns\)"):
        tokenizer.decode([grid[0] for grid in grids], (16, 16))
    with pytest.raises(ShapeError, match="levels 3"):
        tokenizer.decode(grids, (16, 16), levels=3)

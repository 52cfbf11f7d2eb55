"""The architectures: the founding document's, layer by layer, and ours."""

from typing import Any

import pytest
import torch
from torch import nn

from slicebook.config import TokenizerConfig
from slicebook.errors import ConfigError
from slicebook.models.networks import build_network
from slicebook.models.networks.ladder import Block, Ladder
from slicebook.models.networks.vqvae2 import VQVAE2, ResidualLayer, decoder, encoder
from slicebook.recipes import load_recipe


def small(architecture, **settings):
    defaults: dict[str, Any] = {"scaling_rates": (4, 2), "codebook_sizes": (8, 8), "code_dim": 4, "width": 16}
    return TokenizerConfig(architecture=architecture, **(defaults | settings))


def describe(layer):
    """Return a layer as a line: what it is, its channels, kernel, stride and padding."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        assert layer.kernel_size[0] == layer.kernel_size[1]
        kind = "up" if isinstance(layer, nn.ConvTranspose2d) else "conv"
        channels = f"{layer.in_channels}→{layer.out_channels}"
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        return f"{kind} {channels} {kernel}×{kernel} /{stride} +{padding}"
    if isinstance(layer, nn.BatchNorm2d):
        return f"norm {layer.num_features}"
    if isinstance(layer, nn.Sequential):
        return [describe(inner) for inner in layer]
    return type(layer).__name__


# --- The founding architecture, requirements 3 to 6 of the founding document


@pytest.fixture(scope="module")
def founding():
    return VQVAE2(load_recipe("comp3710").tokenizer)


def test_the_first_encoder_is_the_founding_documents(founding):
    assert [describe(layer) for layer in founding.encoders[0]] == [
        *("conv 1→64 4×4 /2 +1", "norm 64", "ReLU"),
        *("conv 64→128 4×4 /2 +1", "norm 128", "ReLU"),
        *("conv 128→128 4×4 /2 +1", "norm 128", "ReLU"),
        *("conv 128→128 3×3 /1 +1", "norm 128"),
        *("ResidualLayer", "ResidualLayer"),
    ]


@pytest.mark.parametrize(
    ("level", "steps"),
    [(1, ["conv 128→64 4×4 /2 +1", "conv 64→128 4×4 /2 +1"]), (2, ["conv 128→64 4×4 /2 +1"])],
)
def test_a_coarser_encoder_reads_the_finer_one_and_halves_log2_of_its_rate_times(founding, level, steps):
    layers = [describe(layer) for layer in founding.encoders[level]]
    assert [line for line in layers if " /2 " in line] == steps
    assert layers[-4:] == [
        f"conv {128 if level == 1 else 64}→128 3×3 /1 +1",
        "norm 128",
        *["ResidualLayer"] * 2,
    ]


def test_a_residual_layer_is_the_founding_documents(founding):
    layer = founding.encoders[0][-1]
    assert describe(layer.body) == [
        *("conv 128→32 3×3 /1 +1", "norm 32", "ReLU"),
        *("conv 32→128 3×3 /1 +1", "norm 128", "ReLU"),
    ]


def test_a_residual_layer_adds_alpha_times_its_body_and_alpha_is_learned_from_0():
    layer = ResidualLayer(16, 8).eval()
    x = torch.randn(1, 16, 5, 5)
    assert layer.alpha.requires_grad
    assert layer.alpha.item() == 0
    assert layer(x).equal(x)
    with torch.no_grad():
        layer.alpha.fill_(0.5)
    torch.testing.assert_close(layer(x), x + 0.5 * layer.body(x))
    layer(x).sum().backward()
    assert layer.alpha.grad != 0


def test_the_decoder_mirrors_the_widths_of_the_encoder(founding):
    # Requirement 5: 128→128→64→64, then to 1.
    assert [describe(layer) for layer in founding.decoder] == [
        "conv 384→128 3×3 /1 +1",
        *("ResidualLayer", "ResidualLayer"),
        *("up 128→128 4×4 /2 +1", "norm 128", "ReLU"),
        *("up 128→64 4×4 /2 +1", "norm 64", "ReLU"),
        *("up 64→64 4×4 /2 +1", "norm 64", "ReLU"),
        *("conv 64→1 3×3 /1 +1", "norm 1"),
    ]


def test_one_decoder_is_built_because_one_is_used(founding):
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in founding.modules()) == 3


def test_each_level_is_joined_with_all_coarser_codes_before_a_1x1_convolution(founding):
    lines = [describe(layer) for layer in founding.to_latents]
    assert lines == [f"conv {128 + 128 * coarser}→128 1×1 /1 +0" for coarser in (2, 1, 0)]


def test_coarser_codes_are_resized_to_the_nearest_and_all_reach_the_latents():
    network = VQVAE2(small("vqvae2", scaling_rates=(2, 2, 2), codebook_sizes=(8, 8, 8)))
    with torch.no_grad():
        for weight in network.to_latents.parameters():
            weight.zero_()
        finest = network.to_latents.get_parameter("0.weight")
        finest[0, 16] = 1  # the first channel of the coarsest codes
        finest[1, 20] = 1  # and of the middle ones
    coarsest, middle = torch.tensor([[1.0, 2.0]]), torch.arange(8.0).view(2, 4)
    context = network.decode_level(2, (), coarsest.expand(1, 4, 1, 2))
    context = network.decode_level(1, context, middle.expand(1, 4, 2, 4))
    latents = network.latents(0, torch.zeros(1, 16, 4, 8), context)[0]
    assert latents[0].equal(coarsest.repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert latents[1].equal(middle.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_all_codes_reach_the_one_decoder_resized_to_the_finest_grid():
    network = VQVAE2(small("vqvae2"))
    read = []
    network.decoder.register_forward_pre_hook(lambda _module, given: read.append(given[0]))
    coarse, fine = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 4, 6)
    network.image(network.decode_level(0, network.decode_level(1, (), coarse), fine))
    (joined,) = read
    assert joined[:, :4].equal(coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert joined[:, 4:].equal(fine)


@pytest.mark.parametrize("rate", [2, 4, 8, 16])
def test_an_encoder_and_a_decoder_change_the_sides_by_their_rate(rate):
    x = torch.randn(2, 1, 32, 16)
    latents = encoder(1, 16, rate, 8, 1)(x)
    assert latents.shape == (2, 16, 32 // rate, 16 // rate)
    assert decoder(16, 16, rate, 8, 1)(latents).shape == x.shape


@pytest.mark.parametrize("rate", [0, 1, 3, 6, 12])
def test_a_rate_that_is_no_power_of_2_is_a_clear_error(rate):
    with pytest.raises(ConfigError, match=rf"scaling rate {rate} is not a power of 2; use 2, 4, 8"):
        load_recipe("comp3710", [f"tokenizer.scaling_rates=[8, {rate}, 2]"])


# --- Ours


def test_a_block_of_the_ladder_starts_as_the_identity():
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(Block(16)(x), x, atol=0.3, rtol=0)  # but for a bias
    assert not Block(16).get_parameter("body.5.weight").any()


@pytest.mark.parametrize("rate", [2, 4, 8, 16])
def test_the_ladder_patchifies_and_unpatchifies_by_its_rates(rate):
    network = Ladder(small("ladder", scaling_rates=(rate, 2)))
    features = network.features(torch.randn(2, 1, 4 * rate, 2 * rate))
    assert [map_.shape[-2:] for map_ in features] == [(4, 2), (2, 1)]
    context = network.decode_level(1, (), torch.randn(2, 4, 2, 1))
    assert context[0].shape == (2, 16, 4, 2)
    assert network.image(network.decode_level(0, context, torch.randn(2, 4, 4, 2))).shape == (
        2,
        1,
        4 * rate,
        2 * rate,
    )


def test_latents_of_a_finer_level_depend_on_the_coarser_ones():
    network = Ladder(small("ladder"))
    features = torch.randn(1, 16, 4, 4)
    ones, zeros = torch.ones(1, 16, 4, 4), torch.zeros(1, 16, 4, 4)
    assert not torch.equal(network.latents(0, features, (ones,)), network.latents(0, features, (zeros,)))


@pytest.mark.parametrize("width", [16, 48, 96, 128])
def test_every_width_that_settings_allow_can_be_built(width):
    for architecture in ("ladder", "vqvae2"):
        build_network(small(architecture, width=width))


# --- Both


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_no_weight_is_idle(architecture):
    config = small(architecture, scaling_rates=(4, 2, 2), codebook_sizes=(8, 8, 8))
    network = build_network(config)
    features = network.features(torch.randn(2, 1, 32, 32))
    context: tuple[torch.Tensor, ...] = ()
    for level in (2, 1, 0):
        context = network.decode_level(level, context, network.latents(level, features[level], context))
    network.image(context).square().sum().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert idle == []

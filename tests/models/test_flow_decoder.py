"""The generation decoder: shapes, what its slices depend on, and pixels that are kept."""

import pytest
import torch

from slicebook.config import DecoderConfig, TokenizerConfig
from slicebook.errors import ConfigError
from slicebook.models.flow_decoder import FlowDecoder
from slicebook.models.tokenizer import Tokenizer

SMALL = DecoderConfig(widths=(32, 32), embedding=16)


def made(rates=(4, 2), config=SMALL):
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(scaling_rates=rates, codebook_sizes=(8,) * len(rates), code_dim=4, width=16)
    ).eval()
    decoder = FlowDecoder(config, tokenizer)
    for parameter in decoder.parameters():  # the heads start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.get_buffer("spread").fill_(0.2)
    return tokenizer, decoder.eval()


def inputs(tokenizer, count=3, size=(24, 16)):
    draw = torch.Generator().manual_seed(1)
    rows, columns = tokenizer.grids(size)[0]
    base = torch.rand((count, 1, *size), generator=draw) * 2 - 1
    finest = torch.randint(8, (count, rows, columns), generator=draw)
    noise = torch.randn((count, 1, *size), generator=draw)
    return base, finest, noise


@pytest.mark.parametrize(
    ("rates", "widths"), [((4, 2), (32, 32)), ((8, 2), (32, 32, 32)), ((2, 4), (32, 32)), ((4, 4), (32,))]
)
def test_slices_have_the_size_of_what_the_tokenizer_decodes(rates, widths):
    tokenizer, decoder = made(rates, DecoderConfig(widths=widths, embedding=16))
    size = (3 * tokenizer.stride, 2 * tokenizer.stride)
    base, finest, noise = inputs(tokenizer, size=size)
    with torch.no_grad():
        assert decoder.draw(base, finest, noise, 2).shape == base.shape


@pytest.mark.parametrize(("rates", "widths"), [((2, 2), (32, 32, 32)), ((2,), (32, 32))])
def test_a_tokenizer_whose_grid_does_not_fit_is_refused(rates, widths):
    with pytest.raises(ConfigError, match="give fewer"):
        made(rates, DecoderConfig(widths=widths))


def test_a_slice_depends_on_its_base_its_tokens_and_its_noise():
    tokenizer, decoder = made()
    base, finest, noise = inputs(tokenizer)
    with torch.no_grad():
        drawn = decoder.draw(base, finest, noise, 3)
        assert drawn.equal(decoder.draw(base, finest, noise, 3))
        for changed in ((base + 0.1, finest, noise), (base, 7 - finest, noise), (base, finest, -noise)):
            other = decoder.draw(*changed, 3) - changed[0]
            assert not torch.allclose(other, drawn - base, atol=1e-4)


def test_the_residual_is_in_units_of_its_spread():
    """A network that estimates nothing but zeros ends at the base, whatever the noise."""
    tokenizer, decoder = made()
    base, finest, noise = inputs(tokenizer)
    decoder.forward = lambda samples, base, finest, times: -samples / (1 - times.view(-1, 1, 1, 1))
    assert torch.allclose(decoder.draw(base, finest, noise, 4), base, atol=1e-6)
    decoder.forward = lambda samples, base, finest, times: (1 - samples) / (1 - times.view(-1, 1, 1, 1))
    assert torch.allclose(decoder.draw(base, finest, noise, 4), base + 0.2, atol=1e-6)


def test_kept_pixels_stay_and_shape_those_beside_them():
    tokenizer, decoder = made()
    base, finest, noise = inputs(tokenizer)
    kept = torch.zeros_like(base, dtype=torch.bool)
    kept[..., :8] = True
    known = torch.rand_like(base)
    with torch.no_grad():
        drawn = decoder.draw(base, finest, noise, 3, known=known, where=kept)
        other = decoder.draw(base, finest, noise, 3, known=known + 0.5, where=kept)
    assert torch.allclose(drawn[kept], known[kept], atol=1e-6)
    beside = torch.zeros_like(kept)
    beside[..., 8:10] = True
    assert not torch.allclose(drawn[beside], other[beside], atol=1e-4)


def test_weights_of_the_tokenizer_are_not_part_of_it():
    tokenizer, decoder = made()
    assert not {id(p) for p in decoder.parameters()} & {id(p) for p in tokenizer.parameters()}
    assert "codes" not in decoder.state_dict()
    assert "spread" in decoder.state_dict()

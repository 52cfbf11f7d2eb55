"""Codecs get the tokenizer's bits, no more, and their headers for free."""

import sys

import numpy as np
import pytest

from slicebook.errors import ConfigError
from slicebook.metrics import codecs


def texture(seed=0, rows=64, columns=80):
    """Smooth noise: a slice with content at every scale, in [0, 1]."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(rows, columns)))
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    image = np.fft.irfft2(spectrum / (frequency + 0.02) ** 1.5, s=(rows, columns))
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


@pytest.mark.parametrize("name", codecs.CODECS)
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_codec_gets_the_bits_of_the_budget_and_at_most_one_per_cent_more(name, rate):
    image = texture()
    coded = codecs.code(codecs.CODECS[name], image, rate * image.size)
    assert coded.within_budget
    assert 0.85 * rate <= coded.bits / image.size <= codecs.LIMIT * rate


@pytest.mark.parametrize("name", codecs.CODECS)
def test_more_bits_make_a_better_copy(name):
    image = texture()
    errors = [
        np.abs(codecs.code(codecs.CODECS[name], image, rate * image.size).image - image).mean()
        for rate in (0.5, 1.0, 2.0)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


@pytest.mark.parametrize("name", codecs.CODECS)
def test_the_header_is_what_a_blank_slice_costs_and_is_not_counted(name):
    codec, image = codecs.CODECS[name], texture()
    coded = codecs.code(codec, image, 1.0 * image.size)
    stream = codec.encode(np.round(image * 255).astype(np.uint8), coded.quality)
    assert 8 * len(stream) == coded.bits + coded.header_bits
    assert 8 * 40 < coded.header_bits < 8 * 200


@pytest.mark.parametrize("name", codecs.CODECS)
def test_where_the_search_starts_hardly_matters(name):
    image = texture()
    bits = [
        codecs.code(codecs.CODECS[name], image, 1.0 * image.size, start=start).bits
        for start in (0.0, 0.3, 1.0)
    ]
    assert max(bits) <= 1.1 * min(bits)


def test_jpeg_2000_is_a_bare_codestream_with_the_irreversible_wavelet():
    stream = codecs.CODECS["jpeg2000"].encode(np.round(texture() * 255).astype(np.uint8), 0.3)
    assert stream[:4] == b"\xff\x4f\xff\x51"  # SOC, SIZ: no JP2 boxes
    style = stream.index(b"\xff\x52")
    assert stream[style + 13] == 0  # transformation 0 is the 9/7 one


@pytest.mark.parametrize("name", codecs.CODECS)
def test_a_budget_no_stream_meets_gives_the_smallest_one_marked(name):
    image = texture()
    codec = codecs.CODECS[name]
    coded = codecs.code(codec, image, 1.0)
    if coded.within_budget:  # JPEG 2000 can spend nothing: its smallest stream is all header
        assert coded.bits <= 8
    else:
        smallest = codec.encode(np.round(image * 255).astype(np.uint8), 0.0)
        assert coded.bits == 8 * len(smallest) - coded.header_bits


@pytest.mark.parametrize("name", codecs.CODECS)
def test_a_blank_slice_costs_nothing(name):
    coded = codecs.code(codecs.CODECS[name], np.zeros((32, 32), np.float32), 500.0)
    assert coded.within_budget
    assert coded.bits < 100
    assert coded.image.max() < 0.01


def test_without_imagecodecs_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ConfigError, match=r"pip install 'slicebook\[codecs\]'"):
        codecs.versions()

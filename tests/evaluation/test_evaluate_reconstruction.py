"""Rate and distortion: bits are counted for what they buy, and more of them buy more."""

import numpy as np
import pytest
import torch

from slicebook.data.dataset import PreparedData
from slicebook.evaluation.rate_distortion import FACTORS, decode_prefixes, measure_rate_distortion
from slicebook.evaluation.reconstruction import evaluate_reconstruction
from slicebook.evaluation.slices import unit
from slicebook.metrics.image_quality import scores
from slicebook.metrics.statistics import patient_means
from slicebook.models.checkpoint import load_tokenizer


@pytest.fixture(scope="module")
def loaded(trained):
    return load_tokenizer(trained.run)


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded.tokenizer


@pytest.fixture(scope="module")
def slices(trained):
    return PreparedData.open(trained.data).split("validation")


@pytest.fixture(scope="module")
def rate_distortion(loaded, slices):
    return measure_rate_distortion(loaded, slices, codecs=True)


def test_a_prefix_costs_the_bits_of_its_levels(tokenizer):
    size = (32, 64)
    grids, sizes = tokenizer.grids(size), tokenizer.config.codebook_sizes
    coarsest = np.prod(grids[-1]) * np.log2(sizes[-1])
    assert tokenizer.bits(size, levels=1) == pytest.approx(coarsest)
    assert tokenizer.bits(size, levels=2) == tokenizer.bits(size)


def test_all_levels_together_are_the_reconstruction(loaded, tokenizer, slices):
    image = slices[0]
    with torch.inference_mode():
        tokens = tokenizer.encode(image[None])
        torch.testing.assert_close(decode_prefixes(loaded, image)[-1], tokenizer.decode(tokens, (32, 64))[0])


def test_the_last_point_is_the_mean_of_patients_at_all_levels(loaded, tokenizer, slices, rate_distortion):
    first, last = rate_distortion.curves["tokenizer"]
    assert first.bits_per_pixel < last.bits_per_pixel == pytest.approx(tokenizer.bits((32, 64)) / (32 * 64))
    values = []
    for index in range(len(slices)):
        image = slices[index]
        copy = decode_prefixes(loaded, image)[-1]
        values.append(scores(unit(image[None])[0], unit(copy[None])[0]).psnr_whole)
    means = patient_means(values, [record.patient for record in slices.records])
    assert last.scores["psnr_whole"] == pytest.approx(np.mean(list(means.values())))


@pytest.mark.parametrize("codec", ["JPEG 2000", "JPEG XL"])
def test_a_codec_does_better_with_more_bits(rate_distortion, codec):
    points = rate_distortion.curves[codec]
    assert len(points) == len(FACTORS)
    bits = [point.bits_per_pixel for point in points]
    quality = [point.scores["psnr_whole"] for point in points]
    assert bits == sorted(bits)
    assert quality == sorted(quality)
    assert quality[0] < quality[-1]


def test_without_codecs_the_tokenizer_stands_alone(loaded, slices):
    assert list(measure_rate_distortion(loaded, slices, codecs=False).curves) == ["tokenizer"]


def test_no_more_slices_are_used_than_it_takes(loaded, slices, monkeypatch, rate_distortion):
    monkeypatch.setattr("slicebook.evaluation.rate_distortion.MAX_SLICES", 3)
    assert rate_distortion.slices == len(slices)
    assert measure_rate_distortion(loaded, slices, codecs=False).slices == 3


def test_refined_tokens_are_what_is_scored_and_drawn(loaded, slices, tmp_path):
    plain, refined = (
        evaluate_reconstruction(loaded, slices, tmp_path / str(steps), refine=steps) for steps in (0, 20)
    )
    assert (plain.refine, refined.refine) == (0, 20)
    name = "ssim_whole"
    assert refined.scores[name].mean_of_slices > plain.scores[name].mean_of_slices
    assert refined.bits_per_pixel == plain.bits_per_pixel
    last = [result.rate_distortion.curves["tokenizer"][-1].scores[name] for result in (plain, refined)]
    assert last == pytest.approx([result.scores[name].mean_of_patients for result in (plain, refined)])
    assert (tmp_path / "0" / "pairs.png").read_bytes() != (tmp_path / "20" / "pairs.png").read_bytes()

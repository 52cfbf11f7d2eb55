"""Likeness: samples stand beside patients never trained on, at one size, and say how they were drawn."""

import dataclasses

import pytest
import torch

from slicebook.data.dataset import PreparedData
from slicebook.errors import ConfigError, DataError
from slicebook.evaluation.generation import (
    FIRST_SAMPLE,
    draw_samples,
    evaluate_generation,
    measure_anatomy,
)
from slicebook.evaluation.slices import of_size, read_slices, reconstruct, unit
from slicebook.metrics.distribution import compare
from slicebook.metrics.features import texture
from slicebook.models.sampling import SamplingSettings

SIZE = (32, 64)


@pytest.fixture(scope="module")
def data(trained):
    return PreparedData.open(trained.data)


@pytest.fixture(scope="module")
def real(data):
    return read_slices(data, "validation", SIZE)


def test_a_sample_is_the_same_among_others(loaded, data):
    few, _ = draw_samples(loaded, data, 2)
    more, _ = draw_samples(loaded, data, 3)
    torch.testing.assert_close(few.images, more.images[:2], rtol=0, atol=0)
    assert more.seeds == (FIRST_SAMPLE, FIRST_SAMPLE + 1, FIRST_SAMPLE + 2)


def test_how_samples_were_drawn_is_told(loaded, data):
    settings = SamplingSettings(3, 2, 1.0)
    samples, sampling = draw_samples(loaded, data, 2, settings=settings)
    assert (sampling.samples, sampling.rows, sampling.columns, sampling.first_seed) == (
        2,
        *SIZE,
        FIRST_SAMPLE,
    )
    assert sampling.settings == dataclasses.asdict(settings)
    assert sum(sampling.tokens.values()) == sum(len(stage) for stage in loaded.tokenizer.layout(SIZE).stages)
    assert samples.masks.shape == (2, *SIZE)
    other, _ = draw_samples(loaded, data, 2, settings=SamplingSettings(3, 1, 1.0))
    assert other.masks.equal(samples.masks)
    assert not other.images.equal(samples.images)


def test_data_that_the_prior_was_not_trained_on_are_refused(loaded, data):
    other = dataclasses.replace(data, info=data.info.model_copy(update={"split_hash": "another"}))
    with pytest.raises(ConfigError, match="has other patients"):
        draw_samples(loaded, other, 1)


def test_real_slices_are_as_near_as_real_slices(loaded, data, real, kinds):
    result = evaluate_generation(loaded, data, real, real, seed=1, kinds=kinds)
    assert list(result.features) == ["texture"]
    samples = result.features["texture"].samples
    assert samples.as_near_as_real
    assert samples.kernel_distance.generated < samples.kernel_distance.real
    assert result.spectrum.distance.generated == pytest.approx(0, abs=2)
    assert (result.held_out_patients, result.held_out_slices) == (2, len(real))
    assert result.anatomy.generated == result.anatomy.real
    assert result.anatomy.ratio in (1, None)


def test_noise_is_not_near(loaded, data, real, kinds):
    noise = torch.rand(real.images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = dataclasses.replace(real, images=noise, masks=None)
    result = evaluate_generation(loaded, data, samples, real, seed=1, kinds=kinds)
    samples = result.features["texture"].samples
    assert not samples.as_near_as_real
    assert samples.kernel_distance.generated > 10 * abs(samples.kernel_distance.real)
    assert result.anatomy is None


def test_the_tokenizer_alone_is_measured_on_other_patients_than_it_stands_beside(loaded, data, real, kinds):
    result = evaluate_generation(loaded, data, real, real, seed=1, kinds=kinds)
    again = reconstruct(loaded, real.images)
    first, second = (texture.texture_features(unit(images)) for images in (again, real.images))
    expected = compare(first, second, real.patients, seed=1, paired=True)
    assert result.features["texture"].tokenizer_only == expected


def test_every_measure_stands_beside_real_patients(loaded, data, real, kinds):
    result = evaluate_generation(loaded, data, real, real, seed=1, kinds=kinds)
    rows = {(measure.features, measure.measure): measure for measure in result.measures()}
    named = {name for features, name in rows if features == "texture"}
    # Two patients are too few for neighbours of another patient: no coverage, density, precision or recall.
    assert {"kernel distance", "Fréchet distance"} == named
    assert {"spectrum", "intensities", "MS-SSIM of pairs"} == {n for features, n in rows if not features}
    kernel = rows["texture", "kernel distance"]
    assert kernel.real == result.features["texture"].samples.kernel_distance.real
    assert kernel.tokenizer_only == result.features["texture"].tokenizer_only.kernel_distance.generated
    assert all(measure.convention for measure in rows.values())


def test_one_held_out_patient_cannot_be_compared_with_another(loaded, data, kinds):
    alone = read_slices(data, "test", SIZE)
    with pytest.raises(DataError, match="1 held-out patient, wanted at least 2"):
        evaluate_generation(loaded, data, alone, alone, seed=1, kinds=kinds)


def test_samples_that_are_not_finite_are_named(loaded, data, real, kinds):
    images = real.images.clone()
    images[3, 0, 5, 5] = float("nan")
    samples = dataclasses.replace(real, images=images)
    with pytest.raises(DataError, match="slice 3 has values that are not finite"):
        evaluate_generation(loaded, data, samples, real, seed=1, kinds=kinds)


@pytest.mark.parametrize("value", [-1.0, 0.3])
def test_constant_samples_are_as_far_as_can_be(loaded, data, real, kinds, value):
    samples = dataclasses.replace(real, images=torch.full_like(real.images, value))
    result = evaluate_generation(loaded, data, samples, real, seed=1, kinds=kinds)
    assert not result.features["texture"].samples.as_near_as_real
    assert result.diversity.generated == pytest.approx(1)


def test_a_mask_of_another_place_breaks_the_rules_of_anatomy(data, real):
    train = of_size(data, "train", SIZE)
    flipped = dataclasses.replace(real, masks=real.masks.flip(1))
    upright, upside_down = (measure_anatomy(slices, real, train, seed=0) for slices in (real, flipped))
    assert upside_down.generated < upright.generated
    assert set(upright.rules) >= {rule for rule, shares in upright.by_rule.items() if shares[0] is not None}

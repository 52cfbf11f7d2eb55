"""The flow: its path, its solver, and the times of training."""

import itertools
import math

import pytest
import torch

from slicebook.models.flow import (
    draw_times,
    noisy,
    solve,
    solve_with_fresh_noise,
    spread_times,
    time_features,
)

MEAN, DEVIATION = 0.7, 0.4  # of Gaussian data


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(samples, time):
    """The expected data of each sample, where the data are Gaussian."""
    variance = (time * DEVIATION) ** 2 + (1 - time) ** 2
    return [MEAN + time * DEVIATION**2 / variance * (x - time * MEAN) for x in samples]


def test_a_sample_goes_from_noise_to_data_in_a_straight_line():
    data, noise = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    samples = noisy(data, noise, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert samples[0].equal(noise[0])
    torch.testing.assert_close(samples[1], 0.25 * data[1] + 0.75 * noise[1])
    assert samples[2].equal(data[2])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_estimate_that_stays_is_reached_in_a_straight_line(steps):
    data, noise = [normal(2, 3, 4, 4), normal(2, 5, 2, 2)], [normal(2, 3, 4, 4), normal(2, 5, 2, 2)]
    seen = []

    def estimate(samples, time):
        seen.append(time)
        for x, d, n in zip(samples, data, noise, strict=True):
            torch.testing.assert_close(x, time * d + (1 - time) * n)
        return data

    for x, d in zip(solve(estimate, noise, steps), data, strict=True):
        assert x.equal(d)
    assert seen == [index / steps for index in range(steps)]


def test_samples_of_gaussian_data_have_their_mean_and_deviation():
    (samples,) = solve(gaussian, [normal(200_000, 1, 1, 1)], 64)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.003)
    assert float(samples.std()) == pytest.approx(DEVIATION, rel=0.01)


def test_the_error_is_of_second_order_in_the_steps():
    """The flow of Gaussian data is known: noise z becomes MEAN + DEVIATION z.

    With doubled steps, the error falls to a half by the first order, and to a quarter, but for a logarithm of
    the steps, by the second.
    """
    noise = normal(1000, 1, 1, 1)

    def error(steps):
        return float((solve(gaussian, [noise], steps)[0] - MEAN - DEVIATION * noise).abs().mean())

    assert error(16) < 0.005
    errors = [error(steps) for steps in (128, 256, 512, 1024)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.2 < coarse / fine < 4.2


def fresh_noise(count=100_000):
    generator = torch.Generator().manual_seed(0)
    return lambda: [torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)]


def test_fresh_noise_leaves_mean_and_most_of_the_deviation_of_gaussian_data():
    (samples,) = solve_with_fresh_noise(gaussian, fresh_noise(), 16)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.005)
    assert 0.5 * DEVIATION < float(samples.std()) < DEVIATION


def test_fresh_noise_corrects_an_error_of_the_first_estimate():
    def wrong_at_first(samples, time):
        return [x + 1 if time == 0 else x for x in gaussian(samples, time)]

    noise = fresh_noise()
    flow, fresh = solve(wrong_at_first, noise(), 16), solve_with_fresh_noise(wrong_at_first, noise, 16)
    errors = [abs(float(samples[0].mean()) - MEAN) for samples in (flow, fresh)]
    assert errors[1] < 0.1 * errors[0]


def test_without_fresh_noise_it_is_the_flow_by_eulers_method():
    def euler(estimate, noise, steps):
        samples = list(noise)
        for index in range(steps):
            time = index / steps
            data = estimate(samples, time)
            samples = [x + (d - x) / (1 - time) / steps for x, d in zip(samples, data, strict=True)]
        return samples

    noise = fresh_noise(1000)
    first = noise()
    draws = iter([first, *(noise() for _ in range(15))])
    (samples,) = solve_with_fresh_noise(gaussian, lambda: next(draws), 16, 0.0)
    torch.testing.assert_close(samples, euler(gaussian, first, 16)[0])


def test_less_fresh_noise_spreads_more():
    spread = [
        float(solve_with_fresh_noise(gaussian, fresh_noise(), 16, share)[0].std())
        for share in (1.0, 0.7, 0.4)
    ]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_noise_is_drawn_once_for_each_estimate(steps):
    draws: list[torch.Tensor] = []
    times: list[float] = []

    def noise():
        draws.append(normal(2, 3, 4, 4, seed=len(draws)))
        return [draws[-1]]

    def estimate(samples, time):
        torch.testing.assert_close(samples[0], (1 - time) * draws[-1] + time)
        times.append(time)
        return [torch.ones_like(samples[0])]

    (samples,) = solve_with_fresh_noise(estimate, noise, steps)
    assert samples.eq(1).all()
    assert times == [index / steps for index in range(steps)]
    assert len(draws) == steps


def test_grids_are_solved_each_by_itself():
    first, second = normal(4, 1, 3, 3), normal(4, 2, 2, 2, seed=1)
    both = solve(gaussian, [first, second], 8)
    assert both[0].equal(solve(gaussian, [first], 8)[0])
    assert both[1].equal(solve(gaussian, [second], 8)[0])


def test_solving_leaves_its_noise_as_it_was():
    noise = [normal(4, 1, 3, 3)]
    solve(gaussian, noise, 4)
    assert noise[0].equal(normal(4, 1, 3, 3))


def test_times_of_training_are_logit_normal():
    times = draw_times(100_000, torch.Generator().manual_seed(0))
    assert 0 < float(times.min()) < float(times.max()) < 1
    logits = torch.logit(times)
    assert float(logits.mean()) == pytest.approx(0, abs=0.02)
    assert float(logits.std()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("first", [0, 1000, 10**9])
def test_times_of_validation_are_spread_evenly_over_any_run_of_slices(first):
    times = torch.cat([torch.zeros(1), spread_times(torch.arange(first, first + 50)), torch.ones(1)])
    gaps = times.sort().values.diff()
    assert float(gaps.min()) > 0
    assert float(gaps.max()) < 2 / 50
    assert spread_times(torch.tensor([first + 7])).equal(times[8:9])


def test_every_time_has_features_of_its_own():
    features = time_features(torch.linspace(0, 1, 101))
    assert features.abs().max() <= 1
    distances = torch.cdist(features, features) + torch.eye(101) * 10
    assert distances.min() > 1
    # Neighbours are nearer to each other than far times are.
    near = time_features(torch.tensor([0.5, 0.5 + 1e-4]))
    assert float((near[0] - near[1]).norm()) < 0.3
    assert math.isclose(float(time_features(torch.zeros(1)).sum()), features.shape[1] / 2)

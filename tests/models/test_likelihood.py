"""Likelihood: an upper bound, and the exact value where the estimate is the best there is."""

import math

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, rows, tiny, untrained

from slicebook.models import prior as prior_module
from slicebook.models.conditions import Conditions
from slicebook.models.prior import LIKELIHOOD_BATCH, Prior, likelihood
from slicebook.models.sequence import TokenGrid, sequence_layout


def scores(tokens, **how):
    return likelihood(tiny(), LAYOUT, tokens, Conditions.unknown(len(tokens)), **how)


@pytest.fixture
def few_ratios(monkeypatch):
    """Integrate in 3 steps, where the value does not matter."""
    monkeypatch.setattr(prior_module, "RATIOS", 3)


@pytest.fixture
def passes(few_ratios, monkeypatch):
    """Collect the samples, times and states that a prior is asked about."""
    asked, whole = [], Prior.forward

    def forward(self, layout, samples, times, clean, states, conditions):
        asked.append((samples, times, states))
        return whole(self, layout, samples, times, clean, states, conditions)

    monkeypatch.setattr(Prior, "forward", forward)
    return asked


# --- Its value


def by_bayes(shares, sharpness=1.0):
    """The network that knows the posterior of one token whose codes have the given probabilities."""

    def forward(self, layout, samples, times, clean, states, conditions):
        (x,), t = samples, times.view(-1, 1, 1, 1, 1)
        codes = self.codes(0)[:-1].view(1, len(shares), -1, 1, 1)
        distances = (x[:, None] - t * codes).square().sum(2)
        return [sharpness * (shares.log().view(1, -1, 1, 1) - distances / (2 * (1 - t[:, 0]).square()))]

    return forward


def one_token_nats(shares, monkeypatch, sharpness=1.0, draws=150, width=8):
    """Of each code."""
    monkeypatch.setattr(Prior, "forward", by_bayes(shares, sharpness))
    count = len(shares)
    layout = sequence_layout((TokenGrid("image", 0, 1, 1, 8, count),))
    prior, tokens = untrained((count,), (8,), width=width), torch.arange(count)[:, None]
    return likelihood(prior, layout, tokens, Conditions.unknown(count), draws=draws).nats[:, 0]


@pytest.mark.parametrize(("count", "width"), [(4, 8), (16, 8), (16, 2), (64, 3)])
def test_with_the_exact_posterior_it_is_the_logarithm_of_the_number_of_codes(count, width, monkeypatch):
    """Of few channels too, where codes lie so near that noise hides them at every ratio."""
    nats = one_token_nats(torch.full((count,), 1 / count), monkeypatch, width=width)
    assert float(nats.mean()) == pytest.approx(math.log(count), rel=0.05)


def test_with_the_exact_posterior_its_mean_is_the_entropy(monkeypatch):
    shares = torch.tensor([0.7, 0.2, 0.05, 0.05])
    nats = one_token_nats(shares, monkeypatch)
    assert float((shares * nats).sum()) == pytest.approx(-float((shares * shares.log()).sum()), rel=0.05)
    assert nats[0] < nats[1] < nats[2]  # a rare code costs more


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_with_another_estimate_it_is_larger(sharpness, monkeypatch):
    shares = torch.full((16,), 1 / 16)
    exact = one_token_nats(shares, monkeypatch).mean()
    assert one_token_nats(shares, monkeypatch, sharpness).mean() > exact + 0.05


def test_wrong_probabilities_cost_as_the_divergence_has_it(monkeypatch):
    """Codes that are equally likely, and an estimate that takes them for rare or frequent."""
    shares = torch.tensor([0.7, 0.2, 0.05, 0.05])
    nats = one_token_nats(shares, monkeypatch)
    assert float(nats.mean()) == pytest.approx(-float(shares.log().mean()), rel=0.08)


# --- Its draws


def test_absent_tokens_cost_nothing(few_ratios):
    tokens = rows(2)
    tokens[0, LAYOUT.slice_of(0)] = SIZES[0]
    nats = scores(tokens).nats
    assert nats[0, LAYOUT.slice_of(0)].eq(0).all()
    assert (nats[0, 2:] > 0).all()
    assert (nats[1] > 0).all()


def test_the_same_seed_gives_the_same_value(few_ratios):
    tokens = rows(2)
    assert scores(tokens, seed=7).nats.equal(scores(tokens, seed=7).nats)
    assert not torch.allclose(scores(tokens, seed=7).nats, scores(tokens).nats, atol=1e-3)


def test_every_sequence_gets_the_same_noise(few_ratios):
    tokens = rows(LIKELIHOOD_BATCH + 2)
    whole = scores(tokens)
    assert whole.nats.shape == (LIKELIHOOD_BATCH + 2, COUNT)
    for row in (0, LIKELIHOOD_BATCH - 1, LIKELIHOOD_BATCH + 1):
        alone = scores(tokens[row : row + 1])
        torch.testing.assert_close(alone.nats[0], whole.nats[row], rtol=1e-3, atol=1e-4)
        assert float(alone.spread[0]) == pytest.approx(float(whole.spread[row]), rel=1e-2, abs=1e-3)
    same = scores(tokens[:1].repeat(3, 1)).nats
    torch.testing.assert_close(same[0], same[2])


def test_a_value_is_the_mean_of_its_draws_and_spread_is_their_deviation(passes):
    """The draws of one seed are those of the first draw, and then others."""
    tokens = rows(3)
    one, two, four = (scores(tokens, draws=draws) for draws in (1, 2, 4))
    assert len(passes) == 7 * 4  # three ratios, and the cross-entropy at the highest
    second = 2 * two.nats - one.nats
    assert not torch.allclose(second, one.nats, atol=1e-2)
    totals = torch.stack([one.nats.sum(1), second.sum(1)])
    torch.testing.assert_close(two.spread, totals.std(0, unbiased=False), rtol=1e-3, atol=1e-3)
    assert (four.spread > 0).all()


def test_one_draw_has_no_spread(few_ratios):
    assert scores(rows(2), draws=1).spread.tolist() == [0, 0]


def test_times_rise_over_the_ratios_of_data_to_noise(passes):
    scores(rows(1), draws=1)
    times = torch.stack([times[0] for _, times, _ in passes[:-1]])
    last = float(passes[-1][1][0])
    assert math.log(last / (1 - last)) == pytest.approx(prior_module.HIGHEST)
    assert last > times.max()
    ratios = (times / (1 - times)).log()
    assert times.diff().gt(0).all()
    torch.testing.assert_close(ratios.diff(), ratios.diff()[:1].expand(2), rtol=1e-3, atol=1e-3)


def test_conditions_belong_to_their_sequences(few_ratios):
    tokens, positions = rows(1).repeat(LIKELIHOOD_BATCH + 1, 1), torch.linspace(0, 1, LIKELIHOOD_BATCH + 1)
    conditions = Conditions(positions, torch.full((LIKELIHOOD_BATCH + 1,), -1))
    nats = likelihood(tiny(), LAYOUT, tokens, conditions).nats
    last = Conditions(positions[-1:], torch.full((1,), -1))
    alone = likelihood(tiny(), LAYOUT, tokens[:1], last).nats
    torch.testing.assert_close(nats[-1:], alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(nats[0], nats[-1], atol=1e-3)


@pytest.mark.parametrize(("rows_of_tokens", "columns"), [(1, 1), (3, 5)])
def test_slices_of_any_size_have_a_likelihood(rows_of_tokens, columns, few_ratios):
    layout = sequence_layout(
        (
            TokenGrid("mask", 0, rows_of_tokens, columns, 8, SIZES[0]),
            TokenGrid("image", 1, rows_of_tokens, columns, 8, SIZES[1]),
            TokenGrid("image", 0, 2 * rows_of_tokens, 2 * columns, 4, SIZES[2]),
        )
    )
    tokens = torch.zeros(2, layout.starts[-1], dtype=torch.int64)
    nats = likelihood(tiny(), layout, tokens, Conditions.unknown(2)).nats
    assert nats.shape == tokens.shape
    assert (nats > 0).all()

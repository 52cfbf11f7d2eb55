"""Likelihood: exact per order, averaged over the same orders for all sequences."""

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, nats, rows, tiny

from slicebook.models.prior import LIKELIHOOD_BATCH, likelihood
from slicebook.models.sequence import draw_orders
from slicebook.models.transformer import Conditions


def scores(tokens, **how):
    return likelihood(tiny(), LAYOUT, tokens, Conditions.unknown(len(tokens)), **how)


def single(tokens, orders, seed=0):
    """Nats of each order on its own: orders × rows × tokens."""
    draw = torch.Generator().manual_seed(seed)
    drawn = [draw_orders(LAYOUT, 1, draw).repeat(len(tokens), 1) for _ in range(orders)]
    return torch.stack([nats(tiny(), tokens, order) for order in drawn])


def test_nats_are_the_mean_over_single_orders():
    tokens = rows(3)
    assert torch.allclose(scores(tokens, orders=5).nats, single(tokens, 5).mean(0), atol=1e-5)


def test_spread_is_that_of_whole_sequences_over_orders():
    tokens = rows(3)
    wanted = single(tokens, 5).sum(2).std(0, unbiased=False)
    assert wanted.min() > 0
    assert torch.allclose(scores(tokens, orders=5).spread, wanted, atol=1e-4)


def test_one_order_has_no_spread():
    assert scores(rows(2), orders=1).spread.tolist() == [0, 0]


def test_every_sequence_gets_the_same_orders():
    tokens = rows(LIKELIHOOD_BATCH + 2)
    whole = scores(tokens)
    assert whole.nats.shape == (LIKELIHOOD_BATCH + 2, COUNT)
    for row in (0, LIKELIHOOD_BATCH - 1, LIKELIHOOD_BATCH + 1):
        alone = scores(tokens[row : row + 1])
        assert torch.allclose(alone.nats[0], whole.nats[row], atol=1e-5)
        assert float(alone.spread[0]) == pytest.approx(float(whole.spread[row]), abs=1e-4)


def test_the_seed_determines_the_orders():
    tokens = rows(2)
    assert torch.allclose(scores(tokens, seed=7, orders=2).nats, single(tokens, 2, 7).mean(0), atol=1e-5)
    assert not torch.allclose(scores(tokens, seed=7).nats, scores(tokens).nats, atol=1e-4)


def test_conditions_belong_to_their_sequences():
    tokens, positions = rows(1).repeat(LIKELIHOOD_BATCH + 1, 1), torch.linspace(0, 1, LIKELIHOOD_BATCH + 1)
    conditions = Conditions(positions, torch.full((LIKELIHOOD_BATCH + 1,), -1))
    nats = likelihood(tiny(), LAYOUT, tokens, conditions).nats
    last = Conditions(positions[-1:], torch.full((1,), -1))
    assert torch.allclose(nats[-1:], likelihood(tiny(), LAYOUT, tokens[:1], last).nats, atol=1e-5)
    assert not torch.allclose(nats[0], nats[-1], atol=1e-4)


def test_unknown_tokens_cost_nothing():
    tokens = rows(1)
    tokens[:, LAYOUT.slice_of(0)] = SIZES[0]
    assert (scores(tokens).nats[:, LAYOUT.slice_of(0)] == 0).all()

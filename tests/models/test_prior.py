"""The prior: exact, in any order within a grid, and without access to future tokens."""

import math

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, STAGES, nats, rows, tiny

from slicebook.config import PriorConfig
from slicebook.models.prior import Prior
from slicebook.models.sequence import TokenGrid, draw_orders, sequence_layout
from slicebook.models.transformer import HEAD_DIM, Conditions, _attention


def orders(count, seed=0):
    return draw_orders(LAYOUT, count, torch.Generator().manual_seed(seed))


def test_the_layout_says_where_each_token_lies():
    assert LAYOUT.starts == (0, 2, 4, 12)
    assert LAYOUT.centres[:2].tolist() == [[4, 4], [12, 4]]
    assert LAYOUT.centres[4:6].tolist() == [[2, 2], [2, 6]]
    # The second row of the 4×2 grid: around it five places inside, and over it the upper coarse token.
    inside = LAYOUT.around[2][2]
    assert sorted(inside[inside < 8].tolist()) == [0, 1, 3, 4, 5, 6, 7]
    above = LAYOUT.above[2][1][2]
    assert above[above < 2].tolist() == [0, 1]
    assert above[4] == 0


def test_orders_go_stage_by_stage_and_known_tokens_come_first():
    known = torch.zeros(6, COUNT, dtype=torch.bool)
    known[:, [5, 9]] = True
    orders = draw_orders(LAYOUT, 6, torch.Generator().manual_seed(0), known)
    for index in range(3):
        part = orders[:, LAYOUT.slice_of(index)]
        assert (part.sort(1).values == torch.arange(*LAYOUT.starts[index : index + 2])).all()
    assert (orders[:, 4:6].sort(1).values == torch.tensor([5, 9])).all()
    assert len({tuple(order.tolist()) for order in orders}) > 3


def test_a_token_is_likely_given_those_before_it_alone():
    prior, tokens, order = tiny(), rows(2), orders(2)
    before = nats(prior, tokens, order)
    for step in range(COUNT):
        other = tokens.clone()
        for row in range(2):
            place = int(order[row, step])
            size = next(s.size for i, s in enumerate(STAGES) if place < LAYOUT.starts[i + 1])
            other[row, place] = (other[row, place] + 1) % size
        after = nats(prior, other, order)
        changed = (after - before).abs() > 1e-6
        ranks = order.argsort(1)
        assert not changed[ranks < step].any()
        assert changed[ranks == step].all()
        if step < COUNT - 1:
            assert changed[ranks > step].any()


def test_probabilities_of_all_codes_sum_to_one():
    prior, tokens, order = tiny(), rows(1), orders(1)
    for place, size in ((1, 3), (2, 4), (7, 5)):
        total = 0.0
        for code in range(size):
            other = tokens.clone()
            other[0, place] = code
            total += math.exp(-float(nats(prior, other, order)[0, place]))
        assert total == pytest.approx(1, abs=1e-5)


def test_the_order_matters_within_a_stage_but_not_in_coarser_ones():
    prior, tokens = tiny(), rows(1)
    first, second = orders(1, seed=0), orders(1, seed=0)
    second[:, 4:] = second[:, 4:].flip(1)
    first_nats, second_nats = nats(prior, tokens, first), nats(prior, tokens, second)
    assert torch.equal(first_nats[:, :4], second_nats[:, :4])
    assert not torch.allclose(first_nats[:, 4:], second_nats[:, 4:], atol=1e-4)


def test_conditions_change_the_likelihood_and_may_be_unknown():
    prior, tokens, order = tiny(groups=2), rows(1), orders(1)

    def under(position, group):
        return nats(prior, tokens, order, Conditions(torch.tensor([position]), torch.tensor([group])))

    losses = [under(*conditions) for conditions in ((math.nan, -1), (0.0, -1), (0.5, -1), (0.5, 0), (0.5, 1))]
    for index, loss in enumerate(losses):
        assert torch.isfinite(loss).all()
        for other in losses[:index]:
            assert not torch.allclose(loss, other, atol=1e-5)


def test_an_unknown_token_costs_nothing_and_tells_nothing():
    prior, tokens, order = tiny(), rows(1), orders(1)
    tokens[:, LAYOUT.slice_of(0)] = SIZES[0]
    losses = nats(prior, tokens, order)
    assert (losses[:, LAYOUT.slice_of(0)] == 0).all()
    assert (losses[:, 2:] > 0).all()


def test_token_noise_changes_inputs_and_not_targets():
    prior, tokens, order = tiny(), rows(1), orders(1)
    input_tokens = tokens.clone()
    last = int(order[0, -1])
    input_tokens[0, last] = (input_tokens[0, last] + 1) % SIZES[2]
    assert torch.equal(nats(prior, tokens, order, input_tokens=input_tokens), nats(prior, tokens, order))
    input_tokens[0, int(order[0, 0])] = (input_tokens[0, int(order[0, 0])] + 1) % SIZES[0]
    assert not torch.allclose(
        nats(prior, tokens, order, input_tokens=input_tokens), nats(prior, tokens, order), atol=1e-5
    )


def test_slices_of_a_batch_do_not_touch_each_other():
    prior, tokens, order = tiny(), rows(3), orders(3)
    whole = nats(prior, tokens, order)
    assert torch.allclose(nats(prior, tokens[1:2], order[1:2]), whole[1:2], atol=1e-5)


def test_attention_by_plain_products_is_the_fused_one():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 3, 7, HEAD_DIM).bfloat16()
    wanted = torch.nn.functional.scaled_dot_product_attention(
        queries.double(), keys.double(), values.double(), is_causal=True
    )
    attended = _attention(queries, keys, values, causal=True)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.double(), wanted, rtol=2e-2, atol=2e-2)


def test_an_untrained_prior_finds_every_code_equally_likely():
    torch.manual_seed(0)
    prior = Prior(PriorConfig(), [torch.randn(k, 3) for k in SIZES]).eval()
    losses = nats(prior, rows(1), orders(1))
    for index, size in enumerate(SIZES):
        assert losses[0, LAYOUT.slice_of(index)].tolist() == pytest.approx(
            [math.log(size)] * len(STAGES[index])
        )


def test_a_prior_memorises_sequences_in_any_order():
    prior, tokens = tiny(), rows(4)
    prior.train()
    optimiser = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    conditions = Conditions(torch.tensor([0.0, 0.3, 0.6, 1.0]), torch.full((4,), -1))
    for step in range(250):
        loss = prior(LAYOUT, tokens, orders(4, seed=step), conditions).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert nats(prior.eval(), tokens, orders(4, seed=999), conditions).mean() < 0.1


def test_one_stage_needs_no_coarse_trunk():
    prior = Prior(PriorConfig(), [torch.randn(5, 3)]).eval()
    assert len(prior.transformers) == 1
    layout = sequence_layout((TokenGrid("image", 0, 3, 2, 8, 5),))
    order = draw_orders(layout, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = prior(layout, torch.zeros(2, 6, dtype=torch.int64), order, Conditions.unknown(2))
    assert losses.shape == (2, 6)


def test_one_prior_serves_slices_of_other_sizes():
    prior = tiny()
    wide = sequence_layout(
        (
            TokenGrid("mask", 0, 2, 3, 8, SIZES[0]),
            TokenGrid("image", 1, 2, 3, 8, SIZES[1]),
            TokenGrid("image", 0, 4, 6, 4, SIZES[2]),
        )
    )
    order = draw_orders(wide, 1, torch.Generator().manual_seed(0))
    tokens = torch.zeros(1, wide.starts[-1], dtype=torch.int64)
    with torch.no_grad():
        assert torch.isfinite(prior(wide, tokens, order, Conditions.unknown(1))).all()

"""The prior: what it reads of known, unknown and absent tokens, and slices of all sizes."""

import math

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, STAGES, logits_of, rows, tiny, untrained

from slicebook.config import PriorConfig
from slicebook.models.conditions import Conditions
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior, states_of
from slicebook.models.sequence import TokenGrid, sequence_layout

MASK = LAYOUT.slice_of(0)


def other_code(tokens, place):
    """The same tokens, but one of another code."""
    size = next(s.size for i, s in enumerate(STAGES) if place < LAYOUT.starts[i + 1])
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % size
    return changed


def differ(first, second, atol=1e-4):
    """For each token, whether its logits differ."""
    return torch.cat(
        [((a - b).abs() > atol).any(1).flatten(1) for a, b in zip(first, second, strict=True)], 1
    )


def test_the_layout_says_where_each_token_lies():
    assert LAYOUT.starts == (0, 2, 4, 12)
    assert LAYOUT.sizes.tolist() == [3] * 2 + [4] * 2 + [5] * 8
    grids = LAYOUT.split(torch.arange(COUNT)[None])
    assert [grid.tolist() for grid in grids] == [
        [[[0], [1]]],
        [[[2], [3]]],
        [[[4, 5], [6, 7], [8, 9], [10, 11]]],
    ]


def test_a_layout_is_copied_to_a_device_once():
    device = torch.device("meta")
    moved = sequence_layout(STAGES).to(device)
    assert moved.sizes.device == device
    assert sequence_layout(STAGES).to(device) is moved
    assert moved.to(device) is moved
    assert sequence_layout(STAGES).to(torch.device("cpu")) is sequence_layout(STAGES)


def test_codes_enter_with_mean_0_and_variance_1_and_absent_ones_as_zeros():
    torch.manual_seed(0)
    books = [5 + 3 * torch.randn(k, 3) for k in SIZES]
    prior = Prior(PriorConfig(widths=(32,), blocks=1), books, [8, 8, 4])
    for index, codes in enumerate(books):
        standard = prior.codes(index)
        torch.testing.assert_close(standard[:-1].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(standard[:-1].std(0, correction=0), torch.ones(3))
        assert standard[-1].eq(0).all()
        wanted = (codes - codes.mean(0)) / codes.std(0, correction=0)
        torch.testing.assert_close(standard[:-1], wanted)
    tokens = rows(1)
    tokens[:, MASK] = SIZES[0]
    entered = prior.embed(LAYOUT, tokens)
    assert entered[0].eq(0).all()
    assert entered[2][0, :, 3, 1].equal(prior.codes(2)[tokens[0, 11]])


def test_a_code_that_never_varies_is_no_division_by_zero():
    codes = torch.randn(4, 3)
    codes[:, 1] = 2.0
    prior = Prior(PriorConfig(widths=(32,), blocks=1), [codes], [8])
    assert torch.isfinite(prior.codes(0)).all()


def test_codes_are_no_weights_of_the_prior():
    """They are those of the tokenizers, which lie in the same file."""
    assert not [name for name in tiny().state_dict() if "codes" in name]


def test_states_tell_absent_tokens_from_those_to_be_modelled():
    tokens = rows(2)
    tokens[1, MASK] = SIZES[0]
    states = states_of(LAYOUT, tokens)
    assert states[0].eq(UNKNOWN).all()
    assert states[1].tolist() == [ABSENT] * 2 + [UNKNOWN] * 10


@torch.no_grad()
def test_the_expected_code_is_the_mean_under_the_probabilities():
    prior = tiny()
    logits = [torch.randn(2, s.size, s.rows, s.columns) for s in STAGES]
    for index, codes in enumerate(prior.expected_codes(logits)):
        shares = logits[index].softmax(1)
        wanted = sum(
            shares[:, k, None] * prior.codes(index)[k].view(1, -1, 1, 1) for k in range(SIZES[index])
        )
        torch.testing.assert_close(codes, wanted)


def test_the_code_of_an_unknown_token_is_not_read():
    """Only its noisy sample is."""
    prior, tokens = tiny(), rows(2)
    states = torch.full_like(tokens, UNKNOWN)
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randn(x.shape, generator=draw) for x in prior.embed(LAYOUT, tokens)]
    with torch.no_grad():
        first, second = (
            prior(
                LAYOUT, samples, torch.full((2,), 0.3), prior.embed(LAYOUT, t), states, Conditions.unknown(2)
            )
            for t in (tokens, rows(2, seed=1))
        )
    assert not differ(first, second, atol=0).any()


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_known_token_is_read_and_its_sample_is_not(place):
    prior, tokens = tiny(), rows(2)
    states = torch.full_like(tokens, UNKNOWN)
    states[:, place] = KNOWN
    before = logits_of(prior, tokens, states)
    assert differ(before, logits_of(prior, other_code(tokens, place), states)).all()
    whole = torch.full_like(tokens, KNOWN)
    assert not differ(logits_of(prior, tokens, whole), logits_of(prior, tokens, whole, seed=1), atol=0).any()


def test_an_absent_token_tells_nothing_and_differs_from_a_known_or_unknown_one():
    prior, tokens = tiny(), rows(1)
    states = torch.full_like(tokens, UNKNOWN)
    found = []
    for state in (UNKNOWN, KNOWN, ABSENT):
        states[:, MASK] = state
        found.append(logits_of(prior, tokens, states))
    for index, logits in enumerate(found):
        for other in found[:index]:
            assert differ(logits, other)[:, 2:].all()
    changed = other_code(tokens, 0)
    assert not differ(found[2], logits_of(prior, changed, states), atol=0).any()


def test_time_and_noise_are_read():
    prior, tokens = tiny(), rows(2)
    before = logits_of(prior, tokens)
    assert differ(before, logits_of(prior, tokens, time=0.6)).all()
    assert differ(before, logits_of(prior, tokens, seed=1)).all()


def test_conditions_change_the_probabilities_and_may_be_unknown():
    prior, tokens = tiny(groups=2), rows(1)

    def under(position, group):
        return logits_of(
            prior, tokens, conditions=Conditions(torch.tensor([position]), torch.tensor([group]))
        )

    found = [under(*pair) for pair in ((math.nan, -1), (0.0, -1), (0.5, -1), (0.5, 0), (0.5, 1))]
    for index, logits in enumerate(found):
        assert all(torch.isfinite(grid).all() for grid in logits)
        for other in found[:index]:
            assert differ(logits, other).all()


def test_slices_of_a_batch_do_not_touch_each_other():
    prior, tokens = tiny(), rows(3)
    conditions = Conditions(torch.tensor([0.1, 0.5, math.nan]), torch.full((3,), -1))
    states = torch.full_like(tokens, KNOWN)
    states[:, 5:] = UNKNOWN
    whole = logits_of(prior, tokens, states, conditions=conditions)
    for row in range(3):
        one = torch.tensor([row])
        alone = logits_of(prior, tokens[one], states[one], conditions=conditions[one])
        for actual, wanted in zip(alone, whole, strict=True):
            torch.testing.assert_close(actual[0], wanted[row], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter_after_a_few_steps():
    prior = untrained(groups=2).train()
    optimiser = torch.optim.SGD(prior.parameters(), lr=0.1)
    tokens, draw = rows(6), torch.Generator().manual_seed(0)
    tokens[0, MASK] = SIZES[0]
    conditions = Conditions(torch.tensor([math.nan, 0.2, 0.4, 0.6, 0.8, 1.0]), torch.tensor([-1, 0, 1] * 2))
    times, clean = torch.linspace(0.1, 0.9, 6), prior.embed(LAYOUT, tokens)
    samples = [torch.randn(x.shape, generator=draw) for x in clean]
    for _ in range(5):
        optimiser.zero_grad()
        logits = prior(LAYOUT, samples, times, clean, states_of(LAYOUT, tokens), conditions)
        losses = [
            torch.nn.functional.cross_entropy(scores, part, ignore_index=size)
            for scores, part, size in zip(logits, LAYOUT.split(tokens), SIZES, strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimiser.step()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_one_grid_is_enough():
    """And its tokens attend to each other."""
    prior = untrained((5,), (8,))
    for parameter in prior.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    layout = sequence_layout((TokenGrid("image", 0, 9, 7, 8, 5),))
    tokens = torch.zeros(1, 63, dtype=torch.int64)
    states = torch.full_like(tokens, UNKNOWN)
    states[0, 0] = KNOWN
    first = logits_of(prior, tokens, states, layout=layout)
    tokens[0, 0] = 1
    assert differ(first, logits_of(prior, tokens, states, layout=layout), atol=1e-6).all()


@pytest.mark.parametrize(
    ("mask", "coarse", "fine"),
    [
        ((2, 3), (2, 3), (4, 6)),
        ((3, 5), (2, 3), (8, 12)),  # an image tokenizer that pads more
        ((4, 6), (2, 2), (8, 8)),  # and one that pads less, with the mask as the coarsest
        ((1, 1), (1, 1), (2, 2)),
    ],
)
def test_one_prior_serves_slices_of_all_sizes(mask, coarse, fine):
    """Each tokenizer pads a slice to whole tokens of its own, so grids may cover different areas."""
    ratio = fine[0] // coarse[0]
    strides = (8, 4 * ratio, 4)
    prior = untrained(strides=strides)
    for parameter in prior.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    layout = sequence_layout(
        (
            TokenGrid("mask", 0, mask[0], mask[1], strides[0], SIZES[0]),
            TokenGrid("image", 1, coarse[0], coarse[1], strides[1], SIZES[1]),
            TokenGrid("image", 0, fine[0], fine[1], strides[2], SIZES[2]),
        )
    )
    tokens = torch.zeros(1, layout.starts[-1], dtype=torch.int64)
    logits = logits_of(prior, tokens, layout=layout)
    for scores, stage in zip(logits, layout.stages, strict=True):
        assert scores.shape == (1, stage.size, stage.rows, stage.columns)
        assert torch.isfinite(scores).all()
    assert differ(logits, logits_of(prior, tokens, layout=layout, seed=1), atol=1e-6).all()


def test_grids_that_cover_different_areas_are_laid_over_each_other_by_their_centres():
    """A slice of 24×24 pixels: a mask of 3×3 tokens, and an image that is padded by 4 pixels on each side."""
    prior = untrained((3, 4), (8, 16))
    entered = []
    prior.unet.register_forward_pre_hook(lambda _, given: entered.extend(given[0]))
    layout = sequence_layout((TokenGrid("mask", 0, 3, 3, 8, 3), TokenGrid("image", 0, 2, 2, 16, 4)))
    tokens = torch.ones(1, 13, dtype=torch.int64)
    logits_of(prior, tokens, torch.full_like(tokens, KNOWN), layout=layout)
    mask, image = entered
    assert mask.shape[-2:] == (4, 4)
    assert image.shape[-2:] == (2, 2)
    known, absent = mask[0, -2], mask[0, -1]
    assert known[:3, :3].eq(1).all()
    assert absent[:3, :3].eq(0).all()
    assert (known + absent).eq(1).all()
    assert mask[0, :3, 1, 1].equal(prior.codes(0)[1])
    assert mask[0, :3, 3].eq(0).all()

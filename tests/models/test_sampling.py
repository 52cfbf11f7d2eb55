"""Sampling: independent of the batch, and by the same network as the likelihood."""

from dataclasses import replace

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, STAGES, nats, rows, tiny
from torch.overrides import TorchFunctionMode

from slicebook.errors import ConfigError
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings, _sample_top_p, sample
from slicebook.models.sequence import draw_orders, sequence_layout
from slicebook.models.transformer import Conditions

BOLD = SamplingSettings(temperature=1, fine_temperature=1, top_p=1)


def drawn(seeds, settings=BOLD, prior=None, **more):
    conditions = Conditions(torch.linspace(0, 1, len(seeds)), torch.full((len(seeds),), -1))
    return sample(prior or tiny(), LAYOUT, seeds, conditions, settings, **more)


def test_a_sample_does_not_depend_on_its_batch():
    seeds = list(range(5, 5 + SAMPLING_BATCH + 3))
    whole = sample(tiny(), LAYOUT, seeds, Conditions.unknown(len(seeds)), BOLD)
    for index in (0, 4, SAMPLING_BATCH, SAMPLING_BATCH + 2):
        alone = sample(tiny(), LAYOUT, [seeds[index]], Conditions.unknown(1), BOLD)
        assert torch.equal(alone[0], whole[index])
    assert len({tuple(row.tolist()) for row in whole}) > len(seeds) // 2


def test_tokens_are_codes_of_their_stage():
    tokens = drawn(range(8))
    for index, size in enumerate(SIZES):
        part = tokens[:, LAYOUT.slice_of(index)]
        assert part.min() >= 0
        assert part.max() < size


def test_cold_samples_take_the_likeliest_code_of_the_whole_pass():
    """The cached steps and the pass over the whole row are one network."""
    prior = tiny()
    tokens = drawn([3], SamplingSettings(1e-4, 1e-4, 1.0), prior)
    order = draw_orders(LAYOUT, 1, torch.Generator().manual_seed(3))
    conditions = Conditions(torch.zeros(1), torch.full((1,), -1))
    chosen = nats(prior, tokens, order, conditions)
    for place in range(COUNT):
        size = next(s.size for i, s in enumerate(STAGES) if place < LAYOUT.starts[i + 1])
        for code in range(size):
            other = tokens.clone()
            other[0, place] = code
            assert nats(prior, other, order, conditions)[0, place] >= chosen[0, place] - 1e-4


def test_warm_samples_follow_the_probabilities():
    prior, count = tiny(), 640
    tokens = sample(prior, LAYOUT, list(range(count)), Conditions.unknown(count), BOLD)
    draw = torch.Generator()
    first = [int(draw_orders(LAYOUT, 1, draw.manual_seed(seed))[0, 0]) for seed in range(count)]
    for place in (0, 1):
        chosen = [row for row, start in enumerate(first) if start == place]
        order = draw_orders(LAYOUT, 1, draw.manual_seed(chosen[0]))
        for code in range(SIZES[0]):
            wanted = float((-nats(prior, torch.full((1, COUNT), code).clamp(max=2), order))[0, place].exp())
            share = float((tokens[chosen, place] == code).float().mean())
            assert share == pytest.approx(wanted, abs=0.1)


def test_kept_tokens_stay_and_the_others_fit_them():
    known_tokens = rows(3)
    known_mask = torch.zeros(3, COUNT, dtype=torch.bool)
    known_mask[:, ::2] = True
    tokens = drawn([1, 2, 3], known_tokens=known_tokens, known_mask=known_mask)
    assert torch.equal(tokens[known_mask], known_tokens[known_mask])
    assert not torch.equal(tokens[~known_mask], known_tokens[~known_mask])


def test_guidance_moves_away_from_the_unconditional_distribution():
    prior = tiny()
    assert not torch.equal(drawn(range(6), prior=prior), drawn(range(6), SamplingSettings(1, 1, 1, 3), prior))
    unknown = Conditions.unknown(6)
    plain = sample(prior, LAYOUT, list(range(6)), unknown, BOLD)
    guided = sample(prior, LAYOUT, list(range(6)), unknown, SamplingSettings(1, 1, 1, 3))
    assert torch.equal(plain, guided)  # nothing is known, so there is nothing to push towards


@pytest.mark.parametrize(
    ("draw", "top_p", "code"),
    [(0.0, 1.0, 2), (0.49, 1.0, 2), (0.51, 1.0, 0), (0.99, 1.0, 1), (0.99, 0.5, 2), (0.99, 0.6, 0)],
)
def test_top_p_sampling_inverts_the_cumulative_distribution(draw, top_p, code):
    logits = torch.tensor([[0.3, 0.2, 0.5]]).log()
    assert _sample_top_p(logits, torch.tensor([[draw]], dtype=torch.float64), top_p).item() == code


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"fine_temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"guidance": -0.5}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SamplingSettings(**settings)


def test_progress_counts_samples():
    seen = []
    drawn(range(SAMPLING_BATCH + 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(SAMPLING_BATCH, SAMPLING_BATCH + 2), (SAMPLING_BATCH + 2, SAMPLING_BATCH + 2)]


class TableCopies(TorchFunctionMode):
    """Counts calls of `to` on tables of indices."""

    count = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.count += function is torch.Tensor.to and arguments[0].dtype == torch.int64
        return function(*arguments, **(options or {}))


def test_sampling_copies_no_table_per_token():
    counts = []
    for factor in (1, 2):
        layout = sequence_layout(
            tuple(
                replace(stage, rows=factor * stage.rows, columns=factor * stage.columns) for stage in STAGES
            )
        )
        with TableCopies() as copies:
            sample(tiny().eval(), layout, [1], Conditions.unknown(1))
        counts.append(copies.count)
    assert counts[0] == counts[1]


def test_a_layout_is_copied_to_a_device_once_and_whole():
    device = torch.device("meta")
    moved = sequence_layout(STAGES).to(device)
    tables = [
        moved.centres,
        moved.positions,
        *moved.around,
        *(table for above in moved.above for table in above),
    ]
    assert {table.device for table in tables} == {device}
    assert sequence_layout(STAGES).to(device) is moved
    assert moved.to(device) is moved
    assert sequence_layout(STAGES).to(torch.device("cpu")) is sequence_layout(STAGES)

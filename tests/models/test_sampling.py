"""Sampling: independent of the batch, and true to what is known."""

import pytest
import torch
from helpers.prior import COUNT, LAYOUT, SIZES, rows, tiny

from slicebook.errors import ConfigError
from slicebook.models.conditions import Conditions
from slicebook.models.prior import ABSENT, KNOWN, UNKNOWN, Prior
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings, sample

QUICK = SamplingSettings(steps=3)
MASK = LAYOUT.slice_of(0)


def positions(count):
    return Conditions(torch.linspace(0, 1, count), torch.full((count,), -1))


def drawn(seeds, settings=QUICK, prior=None, conditions=None, **more):
    return sample(prior or tiny(), LAYOUT, seeds, conditions or positions(len(seeds)), settings, **more)


@pytest.fixture
def passes(monkeypatch):
    """Collect what a prior is asked: samples, times, states and conditions."""
    asked, whole = [], Prior.forward

    def forward(self, layout, samples, times, clean, states, conditions):
        asked.append((samples, times, states, conditions))
        return whole(self, layout, samples, times, clean, states, conditions)

    monkeypatch.setattr(Prior, "forward", forward)
    return asked


def test_a_sample_does_not_depend_on_its_batch():
    seeds = list(range(5, 5 + SAMPLING_BATCH + 3))
    whole = drawn(seeds, conditions=Conditions.unknown(len(seeds)))
    for index in (0, 4, SAMPLING_BATCH, SAMPLING_BATCH + 2):
        alone = drawn([seeds[index]], conditions=Conditions.unknown(1))
        assert alone[0].equal(whole[index])
    assert len({tuple(row.tolist()) for row in whole}) > len(seeds) // 2


def test_a_sample_with_known_tokens_does_not_depend_on_its_batch():
    known_tokens, known_mask = rows(SAMPLING_BATCH + 2), rows(SAMPLING_BATCH + 2, seed=1) % 2 == 0
    conditions, seeds = positions(SAMPLING_BATCH + 2), range(SAMPLING_BATCH + 2)
    whole = drawn(seeds, conditions=conditions, known_tokens=known_tokens, known_mask=known_mask)
    for index in (1, SAMPLING_BATCH + 1):
        one = torch.tensor([index])
        alone = drawn(
            [index], conditions=conditions[one], known_tokens=known_tokens[one], known_mask=known_mask[one]
        )
        assert alone[0].equal(whole[index])


def test_every_grid_and_every_seed_has_noise_of_its_own(passes):
    drawn([3, 4])
    samples, times, *_ = passes[0]
    assert times.eq(0).all()
    assert not samples[0][0].allclose(samples[1][0])
    assert not samples[0][0].allclose(samples[0][1])
    assert samples[0][1].equal(samples[0][2])  # the last one fills the batch


def test_tokens_are_codes_of_their_grid():
    tokens = drawn(range(8))
    for index, size in enumerate(SIZES):
        part = tokens[:, LAYOUT.slice_of(index)]
        assert part.min() >= 0
        assert part.max() < size


def test_each_step_is_one_pass_at_its_time(passes):
    drawn([1], SamplingSettings(steps=5))
    assert [float(times[0]) for _, times, *_ in passes] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert all(states.eq(UNKNOWN).all() for _, _, states, _ in passes)


def test_the_codes_are_the_most_probable_ones_of_the_last_pass(monkeypatch):
    answers, whole = [], Prior.forward

    def forward(self, *given):
        answers.append(whole(self, *given))
        return answers[-1]

    monkeypatch.setattr(Prior, "forward", forward)
    tokens = drawn([1, 2])
    assert tokens.equal(torch.cat([grid.argmax(1).flatten(1) for grid in answers[-1]], 1)[:2])


def test_known_tokens_stay_and_absent_ones_stay_absent():
    known_tokens = rows(3)
    known_tokens[1, MASK] = SIZES[0]
    known_mask = torch.zeros(3, COUNT, dtype=torch.bool)
    known_mask[:, ::2] = True
    known_mask[1, MASK] = True
    tokens = drawn([1, 2, 3], known_tokens=known_tokens, known_mask=known_mask)
    assert tokens[known_mask].equal(known_tokens[known_mask])
    assert not tokens[~known_mask].equal(known_tokens[~known_mask])


def test_the_network_is_told_which_tokens_are_known_and_which_absent(passes):
    known_tokens, known_mask = rows(2), torch.zeros(2, COUNT, dtype=torch.bool)
    known_tokens[1, MASK] = SIZES[0]
    known_mask[:, :3] = True
    drawn([1, 2], known_tokens=known_tokens, known_mask=known_mask)
    for *_, states, _ in passes:
        assert states[0].tolist() == [KNOWN] * 3 + [UNKNOWN] * 9
        assert states[1].tolist() == [ABSENT] * 2 + [KNOWN] + [UNKNOWN] * 9


@pytest.mark.parametrize("absent", [False, True])
def test_known_tokens_influence_the_others(absent):
    """Of two masks, or of one and none: the noise is the same."""
    count = 8
    known_mask = torch.zeros(count, COUNT, dtype=torch.bool)
    known_mask[:, MASK] = True
    first, second = torch.zeros(2, count, COUNT, dtype=torch.int64)
    second[:, MASK] = SIZES[0] if absent else 1
    one, other = (drawn(range(count), known_tokens=known, known_mask=known_mask) for known in (first, second))
    assert not one[:, 2:].equal(other[:, 2:])


def test_tokens_that_are_not_kept_are_not_read():
    known_mask = torch.zeros(4, COUNT, dtype=torch.bool)
    known_mask[:, 4:8] = True
    first, second = rows(4), rows(4, seed=1)
    second[known_mask] = first[known_mask]
    one, other = (drawn(range(4), known_tokens=known, known_mask=known_mask) for known in (first, second))
    assert one.equal(other)


def test_without_guidance_there_is_one_pass_per_step(passes):
    drawn([1], SamplingSettings(steps=4, guidance=0.0))
    assert len(passes) == 4
    passes.clear()
    drawn([1], SamplingSettings(steps=4, guidance=1.0))
    assert len(passes) == 8
    assert not passes[0][3].position.isnan().any()
    assert passes[1][3].position.isnan().all()


def test_guidance_without_conditions_changes_nothing():
    unknown = Conditions.unknown(6)
    plain = drawn(range(6), conditions=unknown)
    guided = drawn(range(6), SamplingSettings(steps=3, guidance=3.0), conditions=unknown)
    assert plain.equal(guided)


def test_guidance_moves_towards_the_condition(monkeypatch):
    """By its weight times the difference of the log probabilities, with and without the condition."""
    shares = {True: torch.tensor([0.5, 0.3, 0.2]), False: torch.tensor([0.6, 0.1, 0.3])}

    def forward(self, layout, samples, times, clean, states, conditions):
        scores = shares[not conditions.position.isnan().any()].log()
        # Logits have no scale: guidance must not depend on a constant.
        scores = scores + torch.randn(())
        return [scores[:size].view(1, -1, 1, 1).expand(len(times), -1, *x.shape[-2:])
                for x, size in zip(samples, (3, 3, 3), strict=True)]  # fmt: skip

    expected = []
    whole = Prior.expected_codes

    def watched(self, logits):
        expected.append(logits[0][0, :, 0, 0])
        return whole(self, [grid[:, :1].expand(-1, s, -1, -1) for grid, s in zip(logits, SIZES, strict=True)])

    monkeypatch.setattr(Prior, "forward", forward)
    monkeypatch.setattr(Prior, "expected_codes", watched)
    assert drawn([1]).unique().tolist() == [0]
    torch.testing.assert_close(expected[-1].softmax(0), shares[True])
    assert drawn([1], SamplingSettings(steps=3, guidance=2.0)).unique().tolist() == [1]
    wanted = shares[True].log() + 2 * (shares[True].log() - shares[False].log())
    torch.testing.assert_close(expected[-1].softmax(0), wanted.softmax(0))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"steps": 1001}, {"guidance": -0.5}, {"guidance": 100.0}, {"guidance": float("nan")}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SamplingSettings(**settings)


def test_progress_counts_samples():
    seen = []
    drawn(range(SAMPLING_BATCH + 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(SAMPLING_BATCH, SAMPLING_BATCH + 2), (SAMPLING_BATCH + 2, SAMPLING_BATCH + 2)]


def test_no_seeds_make_no_samples():
    assert drawn([]).shape == (0, COUNT)


def test_bfloat16_samples_are_codes_too():
    tokens = drawn(range(4), precision="bf16-mixed")
    assert (tokens >= 0).all()
    assert (tokens < LAYOUT.sizes).all()
    assert (tokens == drawn(range(4))).float().mean() > 0.5

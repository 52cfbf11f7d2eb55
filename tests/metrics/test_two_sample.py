"""The classifier two-sample test: chance for alike sets, 1 for others, folds by patient."""

import numpy as np
import pytest

from slicebook.errors import DataError
from slicebook.metrics import two_sample
from slicebook.metrics.two_sample import detection


def patients_of(count, slices):
    return [f"p{index:02}" for index in range(count) for _ in range(slices)]


def features(draw, owners, *, shift=0.0, own=0.0):
    """Gaussian features; `own` is the spread of patients, each of whom has a mean of their own."""
    means = {owner: own * draw.standard_normal(6) for owner in owners}
    return np.stack([means[owner] + shift + draw.standard_normal(6) for owner in owners])


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def test_sets_of_one_distribution_are_told_apart_by_chance(draw):
    owners = patients_of(10, 20)
    real, others = features(draw, owners), features(draw, owners)
    found = detection(draw.standard_normal((200, 6)), real + 3, real, owners, others, owners, seed=1)
    assert found.tokenizer_only > 0.97
    for auc, interval in ((found.auc, found.interval), (found.reference, found.reference_interval)):
        assert auc == pytest.approx(0.5, abs=0.1)
        assert interval is not None
        assert interval[0] < 0.55
        assert interval[1] > 0.45


def test_a_shift_and_a_spread_are_seen(draw):
    owners = patients_of(10, 20)
    real, others = features(draw, owners), features(draw, owners)
    shifted = detection(draw.standard_normal((200, 6)) + 2, real, real, owners, others, owners, seed=1)
    assert shifted.auc > 0.97
    # The same mean: no linear classifier sees it.
    wide = detection(3 * draw.standard_normal((200, 6)), real, real, owners, others, owners, seed=1)
    assert wide.auc > 0.85


def test_a_patient_is_never_in_training_and_test(draw, monkeypatch):
    """Patients with means of their own would be recognised; between strangers nothing can be learnt."""
    owners = patients_of(10, 20)
    real = features(draw, owners, own=5.0)
    others = features(draw, [f"q{owner}" for owner in owners], own=5.0)
    found = detection(others, real, real, owners, others, [f"q{owner}" for owner in owners], seed=1)
    assert found.reference < 0.75
    by_patient = two_sample._auc

    def by_slice(first, first_owners, second, second_owners, seed):
        names = ([f"{owner} {i}" for i, owner in enumerate(part)] for part in (first_owners, second_owners))
        first_names, second_names = names
        return by_patient(first, first_names, second, second_names, seed)

    monkeypatch.setattr(two_sample, "_auc", by_slice)
    leaky = detection(others, real, real, owners, others, [f"q{owner}" for owner in owners], seed=1)
    assert leaky.reference > 0.95


def test_unequal_sizes_weigh_alike(draw):
    owners = patients_of(10, 20)
    real = features(draw, owners)
    found = detection(
        draw.standard_normal((30, 6)), real, real, owners, features(draw, owners), owners, seed=1
    )
    assert found.auc == pytest.approx(0.5, abs=0.15)


def test_the_seed_decides(draw):
    owners = patients_of(10, 5)
    real, made, others = features(draw, owners), draw.standard_normal((50, 6)), features(draw, owners)
    results = [detection(made, real, real, owners, others, owners, seed=seed).auc for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_too_few_patients_are_refused(draw):
    owners = patients_of(4, 20)
    real = features(draw, owners)
    with pytest.raises(DataError, match="4 patients, wanted at least 5"):
        detection(real, real, real, owners, real, owners, seed=1)

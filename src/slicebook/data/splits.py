"""Assign patients to training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from slicebook.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


def assign_splits(
    patients: Sequence[str],
    given: Mapping[str, Split],
    fractions: tuple[float, float, float] | None,
    seed: int,
    *,
    advice: str = "",
) -> dict[str, Split]:
    """Assign each patient to one split: the split of the data set if it has one, else a random split.

    Args:
        patients: Raw identifiers, unique and in a fixed order.
        given: The splits that the data set defines.
        fractions: Fraction of the patients in train, validation and test; by default 0.7, 0.15 and 0.15.
        seed: Seed of the draw.
        advice: What to do if there are too few patients, for the message.

    Raises:
        ConfigError: Fractions are given for a data set with its own split.
        DataError: There are fewer patients than splits to fill.
    """
    if given and fractions is not None:
        raise ConfigError("--fractions: the data set has its own split; leave the option out")
    drawn = [patient for patient in patients if patient not in given]
    if not drawn:
        return dict(given)
    shares = fractions or DEFAULT_FRACTIONS
    if given:  # the test patients are given; the others are for training and validation
        shares = (shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1]), 0.0)
    order = np.random.default_rng(seed).permutation(drawn).tolist()
    counts = _allocate(len(order), shares, advice, has_own_split=bool(given))
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return {**given, **dict(zip(order, names, strict=True))}


def _allocate(
    patients: int, fractions: tuple[float, float, float], hint: str, *, has_own_split: bool
) -> list[int]:
    """Return three counts that sum to `patients`, proportional to the fractions; at least 1 if above 0."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        many = "1 patient" if patients == 1 else f"{patients} patients"
        if has_own_split:
            remedy = "training needs two patients outside the test split"
        elif patients == 1:
            remedy = "training needs two patients; --fractions 0 0 1 makes a test set of one"
        else:
            remedy = "or give --fractions 0.5 0.5 0 to train with these, --fractions 0 0 1 to test on them"
        raise DataError(
            f"{many} cannot fill {wanted} splits: each patient is in one split only; "
            f"{f'{hint}; ' if hint else ''}add patients; {remedy}"
        )
    counts = [max(int(patients * fraction), fraction > 0) for fraction in fractions]
    while sum(counts) != patients:
        surplus = [count - patients * fraction for count, fraction in zip(counts, fractions, strict=True)]
        if sum(counts) < patients:
            counts[int(np.argmin(surplus))] += 1
        else:
            counts[
                int(np.argmax([s if c > 1 else -np.inf for s, c in zip(surplus, counts, strict=True)]))
            ] -= 1
    return counts

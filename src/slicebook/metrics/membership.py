"""Membership inference: whether a model's likelihoods reveal which slices it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from slicebook.errors import DataError
from slicebook.metrics.statistics import (
    AUROC_CONVENTION,
    RESAMPLES,
    auroc,
    bootstrap_counts,
    percentile_interval,
)


@dataclass(frozen=True)
class Membership:
    """How well likelihoods separate training slices from held-out slices.

    Attributes:
        convention: Definition of `auc`.
        auc: In [0, 1]; 0.5 if likelihoods carry no information about membership.
        interval: 95 % bootstrap interval over the patients of both groups, expanded for the size of the
            smaller group (`statistics.percentile_interval`); None if a group has fewer than 2 patients.
        training_patients, held_out_patients: Numbers of patients.
    """

    convention: str
    auc: float
    interval: tuple[float, float] | None
    training_patients: int
    held_out_patients: int


def membership(
    training: Float64[np.ndarray, " n"],
    training_patients: Sequence[str],
    held_out: Float64[np.ndarray, " m"],
    held_out_patients: Sequence[str],
    *,
    seed: int,
) -> Membership:
    """Return how well log-likelihoods separate training slices from held-out slices.

    The attack scores a slice by the model's own loss (Yeom et al. 2018, https://arxiv.org/abs/1709.01604).
    An AUC above 0.5 means that training slices are more likely under the model, whether or not it copies
    them.

    Args:
        training: Log-likelihood of each training slice; any unit, the same for both groups.
        training_patients: Patient of each training slice.
        held_out: Log-likelihood of each slice of patients that were never trained on.
        held_out_patients: Patient of each held-out slice.
        seed: Seed of the bootstrap.

    Raises:
        DataError: A group is empty, a value is not finite, or the numbers of slices and patients differ.
    """
    for name, values, patients in (
        ("training", training, training_patients),
        ("held-out", held_out, held_out_patients),
    ):
        if not len(values) or len(values) != len(patients) or not np.isfinite(values).all():
            raise DataError(
                f"{len(values)} log-likelihoods of {name} slices with {len(patients)} patients, "
                f"{int((~np.isfinite(values)).sum())} not finite; wanted at least one, all finite, and the "
                "patient of each"
            )
    groups = _by_patient(training, training_patients), _by_patient(held_out, held_out_patients)
    # Pairs of slices in which training scores higher, per pair of patients: a resample only reweights them.
    wins = np.array(
        [[_auc(member, other) * len(member) * len(other) for other in groups[1]] for member in groups[0]]
    )
    interval = None
    if min(wins.shape) >= 2:
        generator = np.random.default_rng(seed)
        counts = [bootstrap_counts(len(group), RESAMPLES, generator) for group in groups]
        slices = [c @ [len(values) for values in group] for c, group in zip(counts, groups, strict=True)]
        draws = ((counts[0] @ wins) * counts[1]).sum(axis=1) / (slices[0] * slices[1])
        interval = percentile_interval(draws, expanded_for=min(wins.shape))
    return Membership(AUROC_CONVENTION, _auc(training, held_out), interval, *map(len, groups))


def _by_patient(
    values: Float64[np.ndarray, " n"], patients: Sequence[str]
) -> list[Float64[np.ndarray, " _"]]:
    """Return each patient's values, in order of first appearance."""
    names = np.asarray(patients)
    return [values[names == name] for name in dict.fromkeys(patients)]


def _auc(training: Float64[np.ndarray, " n"], held_out: Float64[np.ndarray, " m"]) -> float:
    scores = np.concatenate([training, held_out])
    area = auroc(scores, np.arange(len(scores)) < len(training))
    assert area is not None, "neither group is empty"
    return area

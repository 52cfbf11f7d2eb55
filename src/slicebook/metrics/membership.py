"""Whether a model's likelihoods give away which slices it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from slicebook.errors import DataError
from slicebook.metrics.statistics import AUROC_CONVENTION, auroc, expanded_tail

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Membership:
    """How well likelihoods tell training slices from held-out ones.

    Attributes:
        convention: What the area is.
        auc: 0.5 where likelihoods carry no information.
        interval: Bootstrap over the patients of both groups, expanded for the smaller group's number
            (`statistics.expanded_tail`); None with fewer than two in one.
        training_patients, held_out_patients: How many.
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
    """Return how well log-likelihoods tell training slices from held-out ones: membership inference.

    The attack scores a slice by the model's own loss (Yeom et al. 2018, https://arxiv.org/abs/1709.01604).
    Above one half where the model is surer of what it was trained on, whether it copies or not.

    Args:
        training: Of each training slice; the higher, the likelier. In one unit, such as nats a slice.
        training_patients: The patient of each.
        held_out: Of each slice of patients that were never trained on.
        held_out_patients: The patient of each.
        seed: Seeds the one generator used.

    Raises:
        DataError: A group is empty, a value is not finite, or a slice has no patient.
    """
    for name, values, whose in (
        ("training", training, training_patients),
        ("held-out", held_out, held_out_patients),
    ):
        if not len(values) or len(values) != len(whose) or not np.isfinite(values).all():
            raise DataError(
                f"{len(values)} log-likelihoods of {name} slices with {len(whose)} patients, "
                f"{int((~np.isfinite(values)).sum())} not finite; wanted at least one, all finite, and the "
                "patient of each"
            )
    inside, outside = _by_patient(training, training_patients), _by_patient(held_out, held_out_patients)
    # Pairs won, patient by patient: a resample of patients weighs this table anew, with no new ranks.
    won = np.array([[_auc(one, other) * len(one) * len(other) for other in outside] for one in inside])
    interval = None
    if min(won.shape) >= 2:
        generator = np.random.default_rng(seed)
        weights = [
            generator.multinomial(len(side), np.full(len(side), 1 / len(side)), size=_RESAMPLES)
            for side in (inside, outside)
        ]
        pairs = [w @ [len(one) for one in side] for w, side in zip(weights, (inside, outside), strict=True)]
        draws = ((weights[0] @ won) * weights[1]).sum(axis=1) / (pairs[0] * pairs[1])
        tail = expanded_tail(min(won.shape), 0.95)
        interval = tuple(np.quantile(draws, [tail, 1 - tail]).tolist())
    return Membership(AUROC_CONVENTION, _auc(training, held_out), interval, len(inside), len(outside))


def _by_patient(
    values: Float64[np.ndarray, " n"], patients: Sequence[str]
) -> list[Float64[np.ndarray, " _"]]:
    """Return each patient's values, patients in order of appearance."""
    names = np.asarray(patients)
    return [values[names == name] for name in dict.fromkeys(patients)]


def _auc(inside: Float64[np.ndarray, " n"], outside: Float64[np.ndarray, " m"]) -> float:
    area = auroc(np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) < len(inside))
    assert area is not None, "neither group is empty"
    return area

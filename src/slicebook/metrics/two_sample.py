"""The classifier two-sample test: whether a classifier tells generated slices from real ones.

Lopez-Paz & Oquab 2017, https://arxiv.org/abs/1610.06545. Patients differ among each other too, so that a
classifier tells real slices of some patients from those of others: that value stands beside the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial.distance import cdist

from slicebook.errors import DataError
from slicebook.metrics.distribution import standardise
from slicebook.metrics.membership import membership

FOLDS = 5
REGULARISATION = 0.01  # of the kernel ridge classifier, relative to the kernel's diagonal

CONVENTION = (
    f"AUC of a kernel ridge classifier (Gaussian kernel, its width the median distance), {FOLDS} folds by "
    "patient, trained to tell slices from those of held-out patients; 0.5 is chance. Intervals: bootstrap "
    "over patients, and over generated slices. Reference: real slices of training patients instead of "
    "generated ones"
)


@dataclass(frozen=True)
class Detection:
    """How well a classifier tells generated slices from those of held-out patients.

    Attributes:
        convention: Definition.
        auc: For generated slices; 0.5 is chance.
        interval: Of `auc`, 95 %.
        tokenizer_only: The same for real slices decoded from their own tokens.
        reference: The same for real slices of other patients.
        reference_interval: Of `reference`.
    """

    convention: str
    auc: float
    interval: tuple[float, float] | None
    tokenizer_only: float
    reference: float
    reference_interval: tuple[float, float] | None


def detection(
    generated: Float64[np.ndarray, "m f"],
    reconstructed: Float64[np.ndarray, "n _"],
    real: Float64[np.ndarray, "n _"],
    patients: Sequence[str],
    others: Float64[np.ndarray, "k _"],
    other_patients: Sequence[str],
    *,
    seed: int,
    one_unit: bool = False,
) -> Detection:
    """Train classifiers to tell generated slices, and those of other patients, from real ones.

    Args:
        generated: Raw features of generated slices, independent of each other.
        reconstructed: Raw features of the real slices, decoded from their own tokens.
        real: Raw features of slices of held-out patients.
        patients: Patient of each real slice.
        others: Raw features of slices of other patients; as many as generated ones are used at most.
        other_patients: Their patients.
        seed: Seed of the folds and of the bootstrap.
        one_unit: Whether the features share a unit; see `distribution.standardise`.

    Raises:
        DataError: There are fewer held-out or other patients than folds, or fewer generated slices.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(others))[: len(generated)])
    owners = [other_patients[index] for index in chosen]
    sets = [standardise(x, real, one_unit=one_unit) for x in (generated, reconstructed, real, others[chosen])]
    alone = [f"generated {index}" for index in range(len(generated))]
    auc, interval = _auc(sets[0], alone, sets[2], patients, seed)
    tokenizer_only, _ = _auc(sets[1], patients, sets[2], patients, seed)
    reference, reference_interval = _auc(sets[3], owners, sets[2], patients, seed)
    return Detection(CONVENTION, auc, interval, tokenizer_only, reference, reference_interval)


def _auc(
    first: Float64[np.ndarray, "m f"],
    first_owners: Sequence[str],
    second: Float64[np.ndarray, "n f"],
    second_owners: Sequence[str],
    seed: int,
) -> tuple[float, tuple[float, float] | None]:
    """Return the cross-validated AUC of telling two sets apart, and its interval."""
    generator = np.random.default_rng(seed)
    fold_of = _folds(second_owners, generator)
    # Slices made from those of a patient belong to that patient's fold.
    fold_of = _folds([owner for owner in first_owners if owner not in fold_of], generator) | fold_of
    folds = np.array([fold_of[owner] for owner in (*first_owners, *second_owners)])
    features = np.concatenate([first, second])
    is_first = np.arange(len(features)) < len(first)
    scores = np.empty(len(features))
    for fold in range(FOLDS):
        left_out = folds == fold
        scores[left_out] = _classify(features[~left_out], is_first[~left_out], features[left_out])
    result = membership(scores[is_first], first_owners, scores[~is_first], second_owners, seed=seed)
    return result.auc, result.interval


def _folds(owners: Sequence[str], generator: np.random.Generator) -> dict[str, int]:
    """Return the fold of each owner of slices."""
    names = sorted(set(owners))
    if 0 < len(names) < FOLDS:
        raise DataError(f"{len(names)} patients, wanted at least {FOLDS}: one for each fold of a classifier")
    return {name: index % FOLDS for index, name in enumerate(generator.permutation(names).tolist())}


def _classify(
    features: Float64[np.ndarray, "n f"], is_first: Bool[np.ndarray, " n"], unseen: Float64[np.ndarray, "m f"]
) -> Float64[np.ndarray, " m"]:
    """Train on features and return scores of unseen ones, higher for the first class."""
    distances = cdist(features, features, "sqeuclidean")
    width = np.median(distances[np.triu_indices(len(distances), 1)])
    kernel = np.exp(-distances / max(width, 1e-12))
    # Both classes weigh alike: a slice's squared error counts by the inverse size of its class.
    sizes = np.where(is_first, is_first.sum(), (~is_first).sum())
    ridge = np.diag(2 * REGULARISATION * sizes.astype(np.float64))
    weights = np.linalg.solve(kernel + ridge, np.where(is_first, 1.0, -1.0))
    scores: Float64[np.ndarray, " m"] = (
        np.exp(-cdist(unseen, features, "sqeuclidean") / max(width, 1e-12)) @ weights
    )
    return scores

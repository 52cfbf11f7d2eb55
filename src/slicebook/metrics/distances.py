"""Distances between two sets of slices, each slice a row of features.

Slices of one patient are near-duplicates. Neighbours can therefore be sought among other patients only: by
the papers' own rule the reach of a real slice ends at the next slice of the same patient, and real patients
hardly cover each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.spatial.distance import cdist

from slicebook.errors import DataError, ShapeError

NEIGHBOURS = 5
_CONSTANT = 1e-9  # of a feature's largest magnitude: less spread than this is rounding


@dataclass(frozen=True)
class Balls:
    """What `balls` finds.

    Attributes:
        coverage: Share of the real slices with a generated one in their ball.
        density: Mean over generated slices of the number of real balls they lie in, over k; can exceed 1.
        precision: Share of the generated slices that lie in a real ball.
        recall: Share of the real slices that lie in a generated ball.
    """

    coverage: float
    density: float
    precision: float
    recall: float


def standardise(
    features: Float64[np.ndarray, "n f"], reference: Float64[np.ndarray, "m _"], *, one_unit: bool = False
) -> Float64[np.ndarray, "n f"]:
    """Return features as standard deviations from the mean of a reference set.

    A feature at a time: one that is constant in the reference has no such unit, so its mean is taken off, and
    it keeps its own. Or, with `one_unit`, all divided by the root mean square of their standard deviations:
    for features that share a unit, such as a network's, of which some hardly ever stir. By its own unit, one
    that stirs in a single slice of the reference would shout down all others in the next that stirs it.
    Standard deviations are those of the population (divided by m).

    Raises:
        DataError: A feature is not finite, or the reference holds fewer than 2 slices.
        ShapeError: The two sets have different features.
    """
    _check(features, reference, least=0)
    if len(reference) < 2:
        raise DataError(f"the reference holds {len(reference)} slices, wanted at least 2 for a spread")
    spread = reference.std(axis=0)
    largest = np.abs(reference).max(axis=0)
    if one_unit:
        spread, largest = np.sqrt((spread**2).mean()), largest.max()
    return np.asarray(
        (features - reference.mean(axis=0)) / np.where(spread <= _CONSTANT * largest, 1.0, spread)
    )


def kernel_distance(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m _"]) -> float:
    """Return the kernel distance of two sets of standardised features: the unbiased squared MMD.

    The kernel is (a·b/d + 1)³ with d features (Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401). Its
    mean within x and its mean within y, a slice never with itself, less twice its mean between them. The
    expectation is 0 for sets of one distribution, whatever their size, so it can be below 0. No root is
    taken.

    Raises:
        DataError: A set has fewer than 2 slices, or a feature is not finite.
        ShapeError: The two sets have different features.
    """
    _check(x, y, least=2)
    return unbiased_mmd(kernel(x, x), kernel(y, y), kernel(x, y))


def kernel(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> Float64[np.ndarray, "n m"]:
    """Return (a·b/d + 1)³ of every slice of x with every one of y, of d features each."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def unbiased_mmd(
    within_x: Float64[np.ndarray, "n n"],
    within_y: Float64[np.ndarray, "m m"],
    between: Float64[np.ndarray, "n m"],
) -> float:
    """Return the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), given a kernel's values."""
    within = [
        float((one.sum() - np.trace(one)) / (len(one) * (len(one) - 1))) for one in (within_x, within_y)
    ]
    return sum(within) - 2 * float(between.mean())


def frechet_distance(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m _"]) -> float:
    """Return the Fréchet distance of the Gaussians that have the two sets' means and covariances.

    |μx - μy|² + Tr(Σx + Σy - 2 (Σx Σy)^½), covariances over n - 1 (Heusel et al. 2017, eq. 6,
    https://arxiv.org/abs/1706.08500). Defined for fewer slices than features, where covariances are singular,
    and then far above 0 even for one distribution: read it beside the same of real slices.

    Raises:
        DataError: A set has fewer than 2 slices, or a feature is not finite.
        ShapeError: The two sets have different features.
    """
    _check(x, y, least=2)
    # With Σ = RᵀR, the eigenvalues of Σx Σy are the squared singular values of Rx Ryᵀ: no root of a singular
    # matrix is taken, which is where the usual sqrtm turns complex.
    roots = [_root(one) for one in (x, y)]
    common = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    means = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    return max(0.0, means + sum(float((root**2).sum()) for root in roots) - 2 * common)


def balls(
    real: Float64[np.ndarray, "n f"],
    generated: Float64[np.ndarray, "m _"],
    real_patients: Sequence[str] | None = None,
    generated_patients: Sequence[str] | None = None,
    *,
    neighbours: int = NEIGHBOURS,
) -> Balls:
    """Compare two sets by balls that reach from each slice to its k-th neighbour in its own set.

    Coverage and density: Naeem et al. 2020 (https://arxiv.org/abs/2002.09797), k = 5 as there. Precision and
    recall: Kynkäänniemi et al. 2019 (https://arxiv.org/abs/1904.06991), with the same k. Distances are
    Euclidean; balls are closed, so that copies lie in each other's.

    Args:
        real: Standardised features of real slices.
        generated: Those of generated ones.
        real_patients: The patient of each real slice; slices of one patient are no neighbours. Left out, each
            slice is a patient of its own, as in the papers.
        generated_patients: The same for the generated set, for when real slices stand in for it.
        neighbours: k.

    Raises:
        DataError: A slice has fewer than k others to be neighbours, or a feature is not finite.
        ShapeError: The two sets have different features.
    """
    _check(real, generated, least=1)
    return balls_between(
        cdist(real, generated),
        reach(cdist(real, real), real_patients, neighbours),
        reach(cdist(generated, generated), generated_patients, neighbours),
        neighbours,
    )


def balls_between(
    across: Float64[np.ndarray, "n m"],
    reach_of_real: Float64[np.ndarray, " n"],
    reach_of_generated: Float64[np.ndarray, " m"],
    neighbours: int,
) -> Balls:
    """Compare two sets, given the distances from one to the other and how far the balls of each reach."""
    inside = across <= reach_of_real[:, None]
    inside_generated = across <= reach_of_generated[None, :]
    return Balls(
        coverage=float(inside.any(axis=1).mean()),
        density=float(inside.sum() / (neighbours * across.shape[1])),
        precision=float(inside.any(axis=0).mean()),
        recall=float(inside_generated.any(axis=1).mean()),
    )


def reach(
    apart: Float64[np.ndarray, "n n"], patients: Sequence[str] | None, neighbours: int
) -> Float64[np.ndarray, " n"]:
    """Return the distance of each slice to its k-th neighbour of another patient, given all distances.

    Raises:
        DataError: A slice has fewer than k such others.
    """
    names = np.arange(len(apart)) if patients is None else np.asarray(patients)
    others = np.where(names[:, None] == names[None, :], np.inf, apart)
    least = int(np.isfinite(others).sum(axis=1).min())
    if least < neighbours:
        raise DataError(
            f"a slice has {least} others to be its neighbours (those of one patient are none), wanted at "
            f"least {neighbours}; give more slices or patients"
        )
    return np.asarray(np.partition(others, neighbours - 1, axis=1)[:, neighbours - 1])


def _root(x: Float64[np.ndarray, "n f"]) -> Float64[np.ndarray, "r f"]:
    """Return a matrix R, of min(n, f) rows, with RᵀR the covariance of the features."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def _check(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m _"], *, least: int) -> None:
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"one set has {x.shape[1]} features, the other {y.shape[1]}; describe both in the same way"
        )
    for features in (x, y):
        if len(features) < least:
            raise DataError(
                f"a set of {len(features)} slices, wanted at least {least} for this measure; give more slices"
            )
        broken = np.argwhere(~np.isfinite(features))
        if len(broken):
            row, column = broken[0].tolist()
            raise DataError(
                f"feature {column} of slice {row} is {features[row, column]}, which is not finite "
                f"({len(np.unique(broken[:, 0]))} slices have such); leave those slices out"
            )

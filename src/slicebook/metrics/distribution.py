"""Distances between the features of generated slices and those of real slices.

Features are arrays, such as those of `texture` and `deep`. Precision, recall, density and coverage are
defined by balls around slices, which reach to the k-th nearest neighbour. Slices of one patient are
near-duplicates, so neighbours of the same patient are excluded: with them, as in the papers, the balls are so
small that real patients hardly cover each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.spatial.distance import cdist

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.statistics import (
    DRAWS,
    Groups,
    RelativeMeasure,
    Summary,
    check_patients,
    draw_groups,
    summarise_draws,
    summarise_one,
)

NEIGHBOURS = 5  # k
_CONSTANT = 1e-9  # a spread below this share of a feature's largest magnitude is rounding


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage.

    Attributes:
        coverage: Share of the real slices with a generated slice in their ball.
        density: Number of real balls that a generated slice lies in, divided by k; mean over generated
            slices, can exceed 1.
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
    """Standardise features by the mean and standard deviation of a reference set.

    By default each feature is divided by its own standard deviation in the reference; one that is constant
    there is only centred. With `one_unit` all are divided by the root mean square of their standard
    deviations. Use this for features that share a unit, such as a network's, many of which are almost always
    0: divided by its own tiny standard deviation, such a feature would dominate every distance.

    Args:
        features: Features to standardise, one row per slice.
        reference: Features of the reference set; at least 2 slices.
        one_unit: Whether the features share a unit.

    Raises:
        DataError: A feature is not finite, or the reference has fewer than 2 slices.
        ShapeError: The two sets have different numbers of features.
    """
    _check(features, reference, minimum=0)
    if len(reference) < 2:
        raise DataError(
            f"the reference has {len(reference)} slices, wanted at least 2 for a deviation; give more slices"
        )
    spread = reference.std(axis=0)
    largest = np.abs(reference).max(axis=0)
    if one_unit:
        spread, largest = np.sqrt((spread**2).mean()), largest.max()
    return np.asarray(
        (features - reference.mean(axis=0)) / np.where(spread <= _CONSTANT * largest, 1.0, spread)
    )


def kernel(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m f"]) -> Float64[np.ndarray, "n m"]:
    """Return the polynomial kernel (a·b/d + 1)³ of each row a of x with each row b of y; d features."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def unbiased_mmd(
    within_x: Float64[np.ndarray, "n n"],
    within_y: Float64[np.ndarray, "m m"],
    between: Float64[np.ndarray, "n m"],
) -> float:
    """Return the unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3)."""
    within = [
        float((values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)))
        for values in (within_x, within_y)
    ]
    return sum(within) - 2 * float(between.mean())


def frechet_distance(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m _"]) -> float:
    """Return the Fréchet distance of two Gaussians with the sets' means and covariances.

    |μx - μy|² + Tr(Σx + Σy - 2 (Σx Σy)^½), with covariances over n - 1 (Heusel et al. 2017, eq. 6,
    https://arxiv.org/abs/1706.08500). With fewer slices than features the covariances are singular and the
    distance is far above 0 even for two samples of one distribution; compare it with that of real slices.

    Raises:
        DataError: A set has fewer than 2 slices, or a feature is not finite.
        ShapeError: The two sets have different features.
    """
    _check(x, y, minimum=2)
    # With Σ = RᵀR, the eigenvalues of Σx Σy are the squared singular values of Rx Ryᵀ. This avoids the square
    # root of a singular matrix, for which sqrtm returns complex numbers.
    roots = [_root(features) for features in (x, y)]
    common = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    means = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    return max(0.0, means + sum(float((root**2).sum()) for root in roots) - 2 * common)


def prdc_between(
    across: Float64[np.ndarray, "n m"],
    real_radii: Float64[np.ndarray, " n"],
    generated_radii: Float64[np.ndarray, " m"],
    neighbours: int,
) -> PRDC:
    """Return precision, recall, density and coverage from distances and ball radii.

    Args:
        across: Distance of each real slice to each generated slice.
        real_radii: Radius of the ball of each real slice; see `ball_radii`.
        generated_radii: Radius of the ball of each generated slice.
        neighbours: k, which the radii were computed with.
    """
    inside = across <= real_radii[:, None]
    inside_generated = across <= generated_radii[None, :]
    return PRDC(
        coverage=float(inside.any(axis=1).mean()),
        density=float(inside.sum() / (neighbours * across.shape[1])),
        precision=float(inside.any(axis=0).mean()),
        recall=float(inside_generated.any(axis=1).mean()),
    )


def ball_radii(
    apart: Float64[np.ndarray, "n n"], patients: Sequence[str] | None, neighbours: int
) -> Float64[np.ndarray, " n"]:
    """Return the distance of each slice to its k-th nearest neighbour of another patient.

    Args:
        apart: Distance of each slice to each slice of the same set.
        patients: Patient of each slice; None if each slice is a patient of its own.
        neighbours: k.

    Raises:
        DataError: A slice has fewer than k slices of other patients.
    """
    names = np.arange(len(apart)) if patients is None else np.asarray(patients)
    others = np.where(names[:, None] == names[None, :], np.inf, apart)
    fewest = int(np.isfinite(others).sum(axis=1).min())
    if fewest < neighbours:
        raise DataError(
            f"a slice has {fewest} slices of other patients to be its neighbours, wanted at least "
            f"{neighbours}; give more slices or patients"
        )
    return np.asarray(np.partition(others, neighbours - 1, axis=1)[:, neighbours - 1])


def _root(x: Float64[np.ndarray, "n f"]) -> Float64[np.ndarray, "r f"]:
    """Return a matrix R, of min(n, f) rows, with RᵀR the covariance of the features."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def _check(x: Float64[np.ndarray, "n f"], y: Float64[np.ndarray, "m _"], *, minimum: int) -> None:
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"one set has {x.shape[1]} features, the other {y.shape[1]}; compute both with the same features"
        )
    for features in (x, y):
        if len(features) < minimum:
            raise DataError(f"a set has {len(features)} slices, wanted at least {minimum}; give more")
        broken = np.argwhere(~np.isfinite(features))
        if len(broken):
            row, column = broken[0].tolist()
            raise DataError(
                f"feature {column} of slice {row} is {features[row, column]}, which is not finite "
                f"({len(np.unique(broken[:, 0]))} slices affected); exclude those slices"
            )


CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "kernel_distance": "Kernel distance: unbiased squared MMD with the kernel (a·b/d + 1)³ "
        "(Bińkowski et al. 2018); can be below 0.",
        "frechet_distance": "Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6).",
        "coverage": "Share of the real slices whose ball contains a generated slice; a real slice's ball "
        "reaches to its 5th nearest real slice of another patient (Naeem et al. 2020, who count any "
        "neighbour).",
        "density": "Number of real balls that a generated slice lies in, divided by 5; mean over generated "
        "slices (Naeem et al. 2020).",
        "precision": "Share of the generated slices that lie in a real ball (Kynkäänniemi et al. 2019, there "
        "with k = 3).",
        "recall": "Share of the real slices that lie in the ball of a generated slice, which reaches to its "
        "5th nearest generated slice (Kynkäänniemi et al. 2019, there with k = 3).",
    }
)
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "kernel_distance": (-np.inf, np.inf),
        "frechet_distance": (0, np.inf),
        "coverage": (0, 1),
        "density": (0, np.inf),
        "precision": (0, 1),
        "recall": (0, 1),
    }
)
STANDARDISED = "(features - mean) / standard deviation of the held-out slices, per feature"
ONE_UNIT = (
    "(features - mean) / root mean square of the features' standard deviations, both of the held-out slices"
)
COVERAGE_BY_PATIENT = (
    "Coverage of all slices of a held-out patient by all generated slices, neighbours as in coverage"
)


@dataclass(frozen=True)
class Comparison:
    """Generated slices compared with held-out ones.

    Attributes:
        slices: Number in each group of each draw, equal for generated and real.
        draws: Number of random splits of the patients.
        patients: Held-out ones, both groups together.
        standardised: How the features were standardised.
        kernel_distance, frechet_distance: Lower is better.
        coverage, density, precision, recall: Higher is better; `share` compares with real patients. None if
            a slice has fewer than 5 slices of other patients in its group, as always with under 4 patients.
        coverage_by_patient: Coverage of all held-out slices by all generated ones, averaged over patients,
            with the bootstrap interval over patients. It grows with the number of generated slices and has no
            real counterpart. None with fewer than 2 patients who have neighbours.
    """

    slices: int
    draws: int
    patients: int
    standardised: str
    kernel_distance: RelativeMeasure
    frechet_distance: RelativeMeasure
    coverage: RelativeMeasure | None
    density: RelativeMeasure | None
    precision: RelativeMeasure | None
    recall: RelativeMeasure | None
    coverage_by_patient: Summary | None

    @property
    def as_near_as_real(self) -> bool:
        """Whether the kernel distance is at most the 95th percentile of that between real patients."""
        return self.kernel_distance.generated <= self.kernel_distance.real_range[1]


def compare(
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
    one_unit: bool = False,
    paired: bool = False,
) -> Comparison:
    """Compare generated slices with held-out real ones, relative to real patients among each other.

    Features are standardised by the held-out slices. Each draw splits the held-out patients into two groups
    (`statistics.draw_groups`). One group is the reference; equally many slices of the other group, and of the
    generated ones at random, are compared with it. The interval covers the choice of patients
    (`statistics.interval_by_patient`); that of `coverage_by_patient` is a bootstrap.

    Samples of the whole population come nearer to a small group of patients than another small group does,
    and coverage cannot show what both sides lack: read all measures together.

    Args:
        generated: Raw features of generated slices, independent of each other.
        real: Raw features of slices of held-out patients.
        patients: Patient of each real slice.
        seed: Seed of the generator.
        draws: Number of splits.
        one_unit: Whether the features share a unit; see `standardise`.
        paired: Whether generated slice i is a reconstruction of real slice i. Then those of the second group
            are compared with the first, and there is no `coverage_by_patient`.

    Raises:
        DataError: There are fewer than 2 patients or than 2 slices in a group, or a feature is not finite.
        ShapeError: The sets have different features, or the numbers of patients or of paired slices differ.
    """
    check_patients(real, patients)
    if paired and len(generated) != len(real):
        raise ShapeError(f"{len(generated)} slices made of {len(real)} real ones, wanted one of each")
    standardised = [standardise(features, real, one_unit=one_unit) for features in (real, generated)]
    names, count = np.asarray(patients), len(real)
    generator = np.random.default_rng(seed)
    groups = draw_groups(patients, len(generated), draws, generator)
    owners = patients if paired else [f"generated {i}" for i in range(len(generated))]
    pairs = _Pairs(np.concatenate(standardised), (*patients, *owners))
    measures = _measure_groups(pairs, groups, names, len(generated), generator, paired=paired)
    whole = not paired and _has_neighbours(names)
    return Comparison(
        slices=len(groups[0][0]),
        draws=draws,
        patients=len(set(patients)),
        standardised=ONE_UNIT if one_unit else STANDARDISED,
        kernel_distance=measures["kernel_distance"],
        frechet_distance=measures["frechet_distance"],
        coverage=measures.get("coverage"),
        density=measures.get("density"),
        precision=measures.get("precision"),
        recall=measures.get("recall"),
        coverage_by_patient=_coverage_by_patient(pairs, count, patients, seed) if whole else None,
    )


def _measure_groups(
    pairs: _Pairs,
    groups: Sequence[Groups],
    patients: Shaped[np.ndarray, " p"],
    generated: int,
    generator: np.random.Generator,
    *,
    paired: bool,
) -> dict[str, RelativeMeasure]:
    """Return every measure over the draws; `pairs` holds the real slices, then the generated ones."""
    use_neighbours = all(_has_neighbours(patients[group]) for pair in groups for group in pair)
    values: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CONVENTIONS}
    for first, second in groups:
        chosen = second if paired else generator.choice(generated, size=len(first), replace=False)
        for column, other in enumerate((len(patients) + chosen, second)):
            for name, value in pairs.measure(first, other, use_neighbours).items():
                values[name][column].append(value)
    count = len(np.unique(patients))
    return {
        name: summarise_draws(CONVENTIONS[name], *columns, count, BOUNDS[name])
        for name, columns in values.items()
        if columns[0]
    }


class _Pairs:
    """Kernel values and distances of all pairs of slices; draws select rows and columns from them."""

    def __init__(self, features: Float64[np.ndarray, "n f"], patients: Sequence[str]) -> None:
        self.features = features
        self.names = np.asarray(patients)
        self.kernel = kernel(features, features)
        self.apart = cdist(features, features)

    def measure(
        self, reference: Int64[np.ndarray, " r"], other: Int64[np.ndarray, " m"], use_neighbours: bool
    ) -> dict[str, float]:
        """Return every measure of a group of slices relative to a reference group, by name."""
        first, second = np.ix_(reference, reference), np.ix_(other, other)
        between = np.ix_(reference, other)
        measures = {
            "kernel_distance": unbiased_mmd(self.kernel[first], self.kernel[second], self.kernel[between]),
            "frechet_distance": frechet_distance(self.features[reference], self.features[other]),
        }
        if use_neighbours:
            prdc = prdc_between(
                self.apart[between],
                ball_radii(self.apart[first], self.names[reference].tolist(), NEIGHBOURS),
                ball_radii(self.apart[second], self.names[other].tolist(), NEIGHBOURS),
                NEIGHBOURS,
            )
            measures |= vars(prdc)
        return measures


def _coverage_by_patient(pairs: _Pairs, real: int, patients: Sequence[str], seed: int) -> Summary:
    nearest = pairs.apart[:real, real:].min(axis=1)
    inside = nearest <= ball_radii(pairs.apart[:real, :real], patients, NEIGHBOURS)
    return summarise_one(COVERAGE_BY_PATIENT, inside.astype(float).tolist(), patients, seed)


def _has_neighbours(patients: Shaped[np.ndarray, " n"]) -> bool:
    """Return whether every slice has at least 5 slices of other patients in its group."""
    return bool(len(patients) - np.unique(patients, return_counts=True)[1].max() >= NEIGHBOURS)

"""How near a set of generated slices is to real ones, beside how near real patients are to each other.

No distance here means much alone: each depends on the features, on the number of slices, and on how unlike
each other patients are. So every one is taken a second time, by the same rule at the same number of slices,
between two groups of real slices that share no patient, and the two stand side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.spatial.distance import cdist

from slicebook.errors import DataError
from slicebook.metrics.distances import (
    NEIGHBOURS,
    balls,
    frechet_distance,
    kernel_distance,
    reach,
    standardise,
)
from slicebook.metrics.summary import Summary, summarise_one

DRAWS = 100

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "kernel_distance": "Kernel distance: unbiased squared MMD with the kernel (a·b/d + 1)³ "
        "(Bińkowski et al. 2018); can be below 0.",
        "frechet_distance": "Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6).",
        "coverage": "Share of the real slices with a generated one as near as their 5th neighbour among real "
        "slices of other patients (Naeem et al. 2020, whose neighbours are any).",
        "density": "Number of those balls that a generated slice lies in, over 5 (Naeem et al. 2020), mean.",
        "precision": "Share of the generated slices in any of those balls (Kynkäänniemi et al. 2019, k = 3 "
        "there).",
        "recall": "Share of the real slices in any ball of a generated slice, which reaches to its 5th "
        "generated neighbour (Kynkäänniemi et al. 2019, k = 3 there).",
    }
)
STANDARDISED = "features less the mean of the held-out slices, over their standard deviation"
COVERED = "Coverage of all slices of a held-out patient by all generated ones, neighbours as in coverage"


@dataclass(frozen=True)
class Floor:
    """How far apart two groups of real patients are.

    Attributes:
        slices: In each of the two groups: what was asked for, or all that the patients allow.
        patients: In both groups together.
        values: One distance a draw.
        median, percentile_95: Of the values.
    """

    slices: int
    patients: int
    values: tuple[float, ...]
    median: float
    percentile_95: float


@dataclass(frozen=True)
class Beside:
    """One measure of generated slices, and the same of real ones from other patients.

    Each is taken against the same group of real slices, once a draw.

    Attributes:
        convention: What it is.
        generated, real: Median over the draws.
        generated_range, real_range: 5th and 95th percentile over the draws, so over choices of patients.
    """

    convention: str
    generated: float
    generated_range: tuple[float, float]
    real: float
    real_range: tuple[float, float]

    @property
    def share(self) -> float | None:
        """Generated over real, where more is better; None where real is 0."""
        return self.generated / self.real if self.real else None


@dataclass(frozen=True)
class Comparison:
    """Generated slices beside held-out ones.

    Attributes:
        slices: In each group of each draw: the same for generated and real.
        draws: How often the patients were parted anew.
        patients: Held-out ones, both groups together.
        standardised: What was done to the features first.
        kernel_distance, frechet_distance: Less is nearer.
        coverage, density, precision, recall: More is better; `share` compares with real patients. None where
            some slice has not 5 slices of other patients in its group; 4 patients are the fewest that can do.
        covered: Coverage of all held-out slices by all generated ones, averaged over patients, with the
            bootstrap interval over patients. Grows with the number generated: it has no real one beside it.
            None with fewer than 2 patients who have neighbours.
    """

    slices: int
    draws: int
    patients: int
    standardised: str
    kernel_distance: Beside
    frechet_distance: Beside
    coverage: Beside | None
    density: Beside | None
    precision: Beside | None
    recall: Beside | None
    covered: Summary | None

    @property
    def as_near_as_real(self) -> bool:
        """Whether the kernel distance is at most the 95th percentile of that between real patients."""
        return self.kernel_distance.generated <= self.kernel_distance.real_range[1]


def kernel_distance_floor(
    features: Float64[np.ndarray, "n f"], patients: Sequence[str], n: int, draws: int = DRAWS, *, seed: int
) -> Floor:
    """Return the kernel distance between patient-disjoint groups of a held-out set, drawn repeatedly.

    Each draw deals the patients, in random order, to the smaller of two groups, and takes as many slices of
    each at random: n, or the largest number that every draw's groups can give, whichever is less.

    Args:
        features: Standardised features of the held-out slices.
        patients: The patient of each.
        n: Slices wanted in each group.
        draws: How often.
        seed: Seeds the one generator used.

    Raises:
        DataError: There are fewer than 2 patients, or too few slices for a distance.
    """
    groups = _draw_groups(patients, n, draws, np.random.default_rng(seed))
    values = [kernel_distance(features[first], features[second]) for first, second in groups]
    return Floor(
        slices=len(groups[0][0]),
        patients=len(set(patients)),
        values=tuple(values),
        median=float(np.median(values)),
        percentile_95=float(np.quantile(values, 0.95)),
    )


def compare(
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Comparison:
    """Compare generated slices with held-out real ones, beside what real patients score against each other.

    Features are standardised by the held-out slices. Each draw parts the held-out patients as
    `kernel_distance_floor` does; one group is the reference, and as many slices of the other group, and of
    the generated ones at random, are measured against it. So both meet the same reference at the same size,
    and the ranges over draws carry the variation between patients. (A bootstrap of patients would repeat
    slices, and a slice beside its own copy spoils every measure here; `covered` alone, a mean, has one.)

    Generated slices that are fair draws of the whole population come nearer than one small group of
    patients to another, and coverage is blind to what both sides lack: read all measures together.

    Args:
        generated: Raw features of generated slices, independent of each other.
        real: Raw features of slices of patients that were never trained on.
        patients: The patient of each real slice.
        seed: Seeds the one generator used.
        draws: How often.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group, or a feature is not
            finite.
        ShapeError: The two sets have different features.
    """
    ours, theirs = standardise(generated, real), standardise(real, real)
    names = np.asarray(patients)
    generator = np.random.default_rng(seed)
    groups = _draw_groups(patients, len(ours), draws, generator)
    with_balls = all(_neighbours_at_hand(names[group]) for pair in groups for group in pair)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CONVENTIONS}
    for first, second in groups:
        drawn = ours[generator.choice(len(ours), size=len(first), replace=False)]
        sides = ((drawn, None), (theirs[second], names[second].tolist()))
        for side, (measured, whose) in enumerate(sides):
            found["kernel_distance"][side].append(kernel_distance(theirs[first], measured))
            found["frechet_distance"][side].append(frechet_distance(theirs[first], measured))
            if with_balls:
                near = balls(theirs[first], measured, names[first].tolist(), whose)
                for name, value in vars(near).items():
                    found[name][side].append(value)
    beside = {name: _beside(CONVENTIONS[name], *both) for name, both in found.items() if both[0]}
    return Comparison(
        slices=len(groups[0][0]),
        draws=draws,
        patients=len(set(patients)),
        standardised=STANDARDISED,
        kernel_distance=beside["kernel_distance"],
        frechet_distance=beside["frechet_distance"],
        coverage=beside.get("coverage"),
        density=beside.get("density"),
        precision=beside.get("precision"),
        recall=beside.get("recall"),
        covered=_covered(ours, theirs, patients, seed) if _neighbours_at_hand(names) else None,
    )


def _covered(
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n f"],
    patients: Sequence[str],
    seed: int,
) -> Summary:
    nearest = cdist(real, generated).min(axis=1)
    inside = nearest <= reach(real, patients, NEIGHBOURS)
    return summarise_one(COVERED, inside.astype(float).tolist(), patients, seed)


def _neighbours_at_hand(patients: Shaped[np.ndarray, " n"]) -> bool:
    """Return whether every slice has enough slices of other patients beside it."""
    return bool(len(patients) - np.unique(patients, return_counts=True)[1].max() >= NEIGHBOURS)


def _beside(convention: str, generated: Sequence[float], real: Sequence[float]) -> Beside:
    return Beside(
        convention=convention,
        generated=float(np.median(generated)),
        generated_range=_range(generated),
        real=float(np.median(real)),
        real_range=_range(real),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


Groups = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]


def _draw_groups(patients: Sequence[str], n: int, draws: int, generator: np.random.Generator) -> list[Groups]:
    """Return, a draw, the slices of two groups of equal size that share no patient."""
    names, of = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{len(names)} held-out patient, wanted at least 2 to compare with each other; "
            "prepare the data with a larger share of them held out"
        )
    if draws < 1:
        raise DataError(f"{draws} draws of patients, wanted at least 1")
    own = [np.flatnonzero(of == patient) for patient in range(len(names))]
    dealt = [_deal(own, generator) for _ in range(draws)]
    size = min(n, *(len(group) for pair in dealt for group in pair))
    if size < 2:
        raise DataError(
            f"{size} slices a group ({n} asked for, {len(patients)} of {len(names)} held-out patients), "
            "wanted at least 2; generate more, or hold out more patients"
        )
    return [
        (generator.choice(first, size, replace=False), generator.choice(second, size, replace=False))
        for first, second in dealt
    ]


def _deal(
    own: Sequence[Int64[np.ndarray, " _"]], generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """Deal patients, given the slices of each, to the group that has fewer slices."""
    groups: tuple[list[Int64[np.ndarray, " _"]], ...] = ([], [])
    sizes = [0, 0]
    for patient in generator.permutation(len(own)):
        smaller = int(sizes[1] < sizes[0])
        groups[smaller].append(own[patient])
        sizes[smaller] += len(own[patient])
    return np.concatenate(groups[0]), np.concatenate(groups[1])

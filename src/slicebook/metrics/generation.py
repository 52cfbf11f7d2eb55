"""How near the features of generated slices are to those of real ones, beside how near real patients come.

Features are given as arrays, such as those of `texture` and `deep`: what they do not see, no number here
does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.spatial.distance import cdist

from slicebook.errors import ShapeError
from slicebook.metrics.beside import DRAWS, Beside, check_patients, draw_groups, put_beside
from slicebook.metrics.distances import (
    NEIGHBOURS,
    balls_between,
    frechet_distance,
    kernel,
    reach,
    standardise,
    unbiased_mmd,
)
from slicebook.metrics.summary import Summary, summarise_one

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
STANDARDISED = "features less the mean of the held-out slices, over their standard deviation"
ONE_UNIT = (
    "features less the mean of the held-out slices, over the root mean square of their standard deviations"
)
COVERED = "Coverage of all slices of a held-out patient by all generated ones, neighbours as in coverage"


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


def compare(
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n _"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
    one_unit: bool = False,
    twins: bool = False,
) -> Comparison:
    """Compare generated slices with held-out real ones, beside what real patients score against each other.

    Features are standardised by the held-out slices. Each draw parts the held-out patients
    (`beside.draw_groups`); one group is the reference, and as many slices of the other group, and of the
    generated ones at random, are measured against it. So both meet the same reference at the same size. What
    another choice of patients would have changed is in the interval of each (`beside.interval_by_patient`),
    which repeats no slice; `covered` alone, a mean over patients, has a bootstrap's.

    Generated slices that are fair draws of the whole population come nearer than one small group of
    patients to another, and coverage is blind to what both sides lack: read all measures together.

    Args:
        generated: Raw features of generated slices, independent of each other.
        real: Raw features of slices of patients that were never trained on.
        patients: The patient of each real slice.
        seed: Seeds the one generator used.
        draws: How often.
        one_unit: Whether the features share a unit, as those of `deep` do and those of `texture` do not; see
            `distances.standardise`.
        twins: Whether generated slice i was made of real slice i. Then those made of the second group are
            measured against the first, for one beside its own original tells nothing; none is `covered`.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group, or a feature is not
            finite.
        ShapeError: The two sets have different features, there is not a patient a slice, or not a twin.
    """
    check_patients(real, patients)
    if twins and len(generated) != len(real):
        raise ShapeError(f"{len(generated)} slices made of {len(real)} real ones, wanted one of each")
    ours = standardise(generated, real, one_unit=one_unit)
    theirs = standardise(real, real, one_unit=one_unit)
    names = np.asarray(patients)
    generator = np.random.default_rng(seed)
    groups = draw_groups(patients, len(ours), draws, generator)
    with_balls = all(_neighbours_at_hand(names[group]) for pair in groups for group in pair)
    owners = patients if twins else [f"generated {i}" for i in range(len(ours))]
    pairs = _Pairs(np.concatenate([theirs, ours]), (*patients, *owners))
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in CONVENTIONS}
    for first, second in groups:
        chosen = second if twins else generator.choice(len(ours), size=len(first), replace=False)
        drawn = len(theirs) + chosen
        for side, measured in enumerate((drawn, second)):
            for name, value in pairs.measure(first, measured, with_balls).items():
                found[name][side].append(value)
    beside = {
        name: put_beside(CONVENTIONS[name], *both, len(set(patients)), BOUNDS[name])
        for name, both in found.items()
        if both[0]
    }
    return Comparison(
        slices=len(groups[0][0]),
        draws=draws,
        patients=len(set(patients)),
        standardised=ONE_UNIT if one_unit else STANDARDISED,
        kernel_distance=beside["kernel_distance"],
        frechet_distance=beside["frechet_distance"],
        coverage=beside.get("coverage"),
        density=beside.get("density"),
        precision=beside.get("precision"),
        recall=beside.get("recall"),
        covered=None
        if twins or not _neighbours_at_hand(names)
        else _covered(pairs, len(theirs), patients, seed),
    )


class _Pairs:
    """Slices, and what their measures need of each two, which draws only choose from."""

    def __init__(self, features: Float64[np.ndarray, "n f"], patients: Sequence[str]) -> None:
        self.features = features
        self.names = np.asarray(patients)
        self.kernel = kernel(features, features)
        self.apart = cdist(features, features)

    def measure(
        self, reference: Int64[np.ndarray, " r"], other: Int64[np.ndarray, " m"], with_balls: bool
    ) -> dict[str, float]:
        """Return every measure of some slices against others, by name."""
        first, second = np.ix_(reference, reference), np.ix_(other, other)
        between = np.ix_(reference, other)
        found = {
            "kernel_distance": unbiased_mmd(self.kernel[first], self.kernel[second], self.kernel[between]),
            "frechet_distance": frechet_distance(self.features[reference], self.features[other]),
        }
        if with_balls:
            balls = balls_between(
                self.apart[between],
                reach(self.apart[first], self.names[reference].tolist(), NEIGHBOURS),
                reach(self.apart[second], self.names[other].tolist(), NEIGHBOURS),
                NEIGHBOURS,
            )
            found |= vars(balls)
        return found


def _covered(pairs: _Pairs, real: int, patients: Sequence[str], seed: int) -> Summary:
    nearest = pairs.apart[:real, real:].min(axis=1)
    inside = nearest <= reach(pairs.apart[:real, :real], patients, NEIGHBOURS)
    return summarise_one(COVERED, inside.astype(float).tolist(), patients, seed)


def _neighbours_at_hand(patients: Shaped[np.ndarray, " n"]) -> bool:
    """Return whether every slice has enough slices of other patients beside it."""
    return bool(len(patients) - np.unique(patients, return_counts=True)[1].max() >= NEIGHBOURS)

"""One measure of generated slices beside the same measure between real patients, at equal numbers of slices.

No distance between two sets means much alone: each depends on how slices are described, on their number, and
on how unlike each other patients are. So the held-out patients are parted in two, again and again. One half
is the reference; the other half, and as many generated slices, are measured against it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.stats import t as student

from slicebook.errors import DataError, ShapeError

DRAWS = 100
CONFIDENCE = 0.95

Groups = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]


@dataclass(frozen=True)
class Beside:
    """One measure of generated slices, and the same of real ones from other patients.

    Each is taken against the same group of real slices, once a draw.

    Attributes:
        convention: What it is.
        generated, real: Median over the draws.
        generated_range, real_range: 5th and 95th percentile over the draws, so over choices of patients.
        interval: Of `generated`, 95 %, by patient; see `interval_by_patient`.
    """

    convention: str
    generated: float
    generated_range: tuple[float, float]
    real: float
    real_range: tuple[float, float]
    interval: tuple[float, float]

    @property
    def share(self) -> float | None:
        """Generated over real, where more is better; None where real is 0."""
        return self.generated / self.real if self.real else None


def put_beside(
    convention: str,
    generated: Sequence[float],
    real: Sequence[float],
    patients: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Beside:
    """Sum up one measure over draws.

    Args:
        convention: What it is.
        generated: Its value a draw, against half of the patients.
        real: That of the other half against the same.
        patients: Both halves together.
        bounds: Lowest and highest value that the measure can have.
    """
    low, high = interval_by_patient(generated, patients)
    return Beside(
        convention=convention,
        generated=float(np.median(generated)),
        generated_range=_range(generated),
        real=float(np.median(real)),
        real_range=_range(real),
        interval=(max(low, bounds[0]), min(high, bounds[1])),
    )


def interval_by_patient(halves: Sequence[float], patients: int) -> tuple[float, float]:
    """Return the 95 % interval of a measure, given its value against random halves of the patients.

    A bootstrap of patients would repeat slices, and a slice beside its own copy spoils every distance between
    sets. Halves repeat none, and need no other draws than the floor does. The spread of a measure over random
    halves is its standard error over all patients, as the jackknife that leaves out half of them has it
    (Shao and Wu 1989, Ann Statist 17:1176, with d = n / 2, where the factor (n - d) / d is 1); it errs
    towards wide where patients act together. Times Student's t of patients - 1 degrees of freedom, since a
    handful of patients knows its own spread badly.

    It is of what another choice of held-out patients would have changed, the generated slices being given.
    """
    reach = float(np.std(halves)) * float(student.ppf((1 + CONFIDENCE) / 2, patients - 1))
    middle = float(np.median(halves))
    return middle - reach, middle + reach


def measure_beside(
    convention: str,
    measure: Callable[[Float64[np.ndarray, "n f"], Float64[np.ndarray, "m f"]], float],
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n f"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Beside:
    """Take one measure of descriptions of slices, beside the same between real patients.

    Args:
        convention: What it is.
        measure: Compares a reference, first, with as many slices; 0 or more.
        generated: A row a generated slice.
        real: A row a slice of patients that were never trained on.
        patients: The patient of each.
        seed: Seeds the one generator used.
        draws: How often the patients are parted.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group.
        ShapeError: There is not a patient a slice.
    """
    check_patients(real, patients)
    generator = np.random.default_rng(seed)
    ours, theirs = [], []
    for first, second in draw_groups(patients, len(generated), draws, generator):
        drawn = generator.choice(len(generated), size=len(first), replace=False)
        ours.append(measure(real[first], generated[drawn]))
        theirs.append(measure(real[first], real[second]))
    return put_beside(convention, ours, theirs, len(set(patients)), (0, np.inf))


def check_patients(rows: Shaped[np.ndarray, "n ..."], patients: Sequence[str]) -> None:
    """Refuse rows without a patient each.

    Raises:
        ShapeError: There are more or fewer patients than rows.
    """
    if len(rows) != len(patients):
        raise ShapeError(
            f"{len(patients)} names of patients for {len(rows)} real slices, wanted one each; give them in "
            "the order of the slices"
        )


def draw_groups(patients: Sequence[str], n: int, draws: int, generator: np.random.Generator) -> list[Groups]:
    """Return, a draw, the slices of two groups of equal size that share no patient.

    Each draw deals the patients, in random order, to the smaller of two groups, and takes as many slices of
    each at random: n, or the largest number that every draw's groups can give, whichever is less.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group.
    """
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


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)

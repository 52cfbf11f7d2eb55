"""Means over patients, bootstrap intervals, and measures relative to real patients.

Slices of one patient are near-duplicates, so every interval here resamples or splits patients, not slices. A
measure of generated slices is reported together with the same measure between two groups of real patients
with equal numbers of slices, because a distance between two sets has no absolute scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from torch import Tensor

from slicebook.errors import DataError, ShapeError
from slicebook.records import Record

DRAWS = 100  # random splits of the patients
CONFIDENCE = 0.95
RESAMPLES = 10_000  # of a bootstrap

Groups = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]


@dataclass(frozen=True)
class RelativeMeasure:
    """A measure of generated slices, and the same measure of real slices of other patients.

    Each draw compares both with the same reference group of real slices.

    Attributes:
        convention: Definition of the measure.
        generated, real: Median over draws.
        generated_range, real_range: 5th and 95th percentile over draws, that is, over splits of the patients.
        interval: 95 % interval of `generated`; see `interval_by_patient`.
    """

    convention: str
    generated: float
    generated_range: tuple[float, float]
    real: float
    real_range: tuple[float, float]
    interval: tuple[float, float]

    @property
    def share(self) -> float | None:
        """Generated divided by real; None if real is 0. Meant for measures where higher is better."""
        return self.generated / self.real if self.real else None


def summarise_draws(
    convention: str,
    generated: Sequence[float],
    real: Sequence[float],
    patients: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> RelativeMeasure:
    """Summarise the values of one measure over draws.

    Args:
        convention: Definition of the measure.
        generated: Per draw, its value for generated slices compared with one half of the patients.
        real: Per draw, its value for the other half of the patients compared with the same half.
        patients: Number of patients in both halves together.
        bounds: Lowest and highest possible value of the measure.
    """
    low, high = interval_by_patient(generated, patients)
    return RelativeMeasure(
        convention=convention,
        generated=float(np.median(generated)),
        generated_range=_range(generated),
        real=float(np.median(real)),
        real_range=_range(real),
        interval=(max(low, bounds[0]), min(high, bounds[1])),
    )


def interval_by_patient(halves: Sequence[float], patients: int) -> tuple[float, float]:
    """Return the 95 % interval of a measure, given its values for random halves of the patients.

    The interval is the median ± t · s. Here s is the standard deviation over halves, which is the standard
    error over all patients by the delete-d jackknife (Shao and Wu 1989, Ann Statist 17:1176; with d = n / 2
    the factor (n - d) / d is 1), and t is the quantile of Student's t with patients - 1 degrees of freedom.
    A bootstrap is not used: it repeats slices, and duplicates distort distances between sets.

    The interval covers the choice of held-out patients; the generated slices are taken as given. It tends to
    be too wide if patients are correlated.

    Args:
        halves: The measure's value for each random half.
        patients: Number of patients in both halves together; at least 2.
    """
    reach = float(np.std(halves)) * float(student.ppf((1 + CONFIDENCE) / 2, patients - 1))
    middle = float(np.median(halves))
    return middle - reach, middle + reach


def measure_relative(
    convention: str,
    measure: Callable[[Float64[np.ndarray, "n f"], Float64[np.ndarray, "m f"]], float],
    generated: Float64[np.ndarray, "m f"],
    real: Float64[np.ndarray, "n f"],
    patients: Sequence[str],
    *,
    seed: int,
    draws: int = DRAWS,
) -> RelativeMeasure:
    """Measure generated slices and held-out patients against the same groups of real slices.

    Args:
        convention: Definition of the measure.
        measure: Takes the features of a reference group and of an equally large other group; returns a
            distance, 0 or more.
        generated: Features, one row per generated slice.
        real: Features, one row per slice of patients that were never trained on.
        patients: Patient of each real slice.
        seed: Seed of the random splits.
        draws: Number of splits of the patients.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group.
        ShapeError: The number of patients differs from that of real slices.
    """
    check_patients(real, patients)
    generator = np.random.default_rng(seed)
    generated_values, real_values = [], []
    for first, second in draw_groups(patients, len(generated), draws, generator):
        chosen = generator.choice(len(generated), size=len(first), replace=False)
        generated_values.append(measure(real[first], generated[chosen]))
        real_values.append(measure(real[first], real[second]))
    return summarise_draws(convention, generated_values, real_values, len(set(patients)), (0, np.inf))


def check_patients(rows: Shaped[np.ndarray, "n ..."], patients: Sequence[str]) -> None:
    """Check that there is one patient per row.

    Raises:
        ShapeError: The numbers differ.
    """
    if len(rows) != len(patients):
        raise ShapeError(
            f"{len(patients)} patients for {len(rows)} real slices, wanted one per slice; give them in the "
            "order of the slices"
        )


def draw_groups(patients: Sequence[str], n: int, draws: int, generator: np.random.Generator) -> list[Groups]:
    """Split the patients at random into two groups; return the slice indices of both, per draw.

    Patients are taken in random order, each added to the group that has fewer slices so far. Then the same
    number of slices is drawn from each group without replacement: n, or the size of the smallest group over
    all draws if that is less.

    Args:
        patients: Patient of each slice.
        n: Largest number of slices per group.
        draws: Number of splits.
        generator: Source of all random choices.

    Raises:
        DataError: There are fewer than 2 patients, or fewer than 2 slices in a group.
    """
    names, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{len(names)} held-out patient, wanted at least 2 to compare with each other; "
            "prepare the data with a larger share of them held out"
        )
    if draws < 1:
        raise DataError(f"{draws} draws of patients, wanted at least 1")
    slices = [np.flatnonzero(patient_index == patient) for patient in range(len(names))]
    splits = [_split_patients(slices, generator) for _ in range(draws)]
    size = min(n, *(len(group) for pair in splits for group in pair))
    if size < 2:
        raise DataError(
            f"{size} slices per group ({n} requested, {len(patients)} of {len(names)} held-out patients), "
            "wanted at least 2; generate more, or hold out more patients"
        )
    return [
        (generator.choice(first, size, replace=False), generator.choice(second, size, replace=False))
        for first, second in splits
    ]


def _split_patients(
    slices: Sequence[Int64[np.ndarray, " _"]], generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """Assign patients, given the slices of each, to two groups of about equally many slices."""
    groups: tuple[list[Int64[np.ndarray, " _"]], ...] = ([], [])
    sizes = [0, 0]
    for patient in generator.permutation(len(slices)):
        smaller = int(sizes[1] < sizes[0])
        groups[smaller].append(slices[patient])
        sizes[smaller] += len(slices[patient])
    return np.concatenate(groups[0]), np.concatenate(groups[1])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def patient_means(values: Sequence[float | None], patients: Sequence[str]) -> dict[str, float]:
    """Return each patient's mean over the slices that have a value, in order of first appearance."""
    gathered: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if value is not None:
            gathered.setdefault(patient, []).append(value)
    return {patient: float(np.mean(numbers)) for patient, numbers in gathered.items()}


def bootstrap_counts(n: int, resamples: int, generator: np.random.Generator) -> Int64[np.ndarray, "r n"]:
    """Return how often each of n patients is drawn in each bootstrap resample of n patients."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples)


def percentile_interval(
    draws: Float64[np.ndarray, " r"], *, expanded_for: int | None = None, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws of a statistic.

    Plain percentiles are too narrow for few patients: with 6 of them, a 95 % interval contains the true mean
    in 85 % of trials. The expanded percentile interval (Hesterberg 2015, Am Stat 69:371) corrects this to
    93 %. It leaves out Φ(-√(n / (n - 1)) · t) of the draws at each end, where t is the quantile of Student's
    t with n - 1 degrees of freedom, so that for the mean of normal values it is as wide as the t interval.

    Args:
        draws: The statistic, per resample.
        expanded_for: n, the number of resampled patients, at least 2; None for plain percentiles.
        confidence: Nominal coverage.
    """
    tail = (1 - confidence) / 2
    if expanded_for is not None:
        quantile = student.ppf(1 - tail, expanded_for - 1)
        tail = float(norm.cdf(-np.sqrt(expanded_for / (expanded_for - 1)) * quantile))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float | None], patients: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Return the 95 % expanded percentile interval of the mean of patient means, resampling patients.

    Args:
        values: One score per slice; None (undefined) is left out.
        patients: Patient of each slice.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Returns:
        Lower and upper bound, or None with fewer than 2 patients.
    """
    means = np.array(list(patient_means(values, patients).values()))
    if len(means) < 2:
        return None
    counts = bootstrap_counts(len(means), resamples, np.random.default_rng(seed))
    return percentile_interval(counts @ means / len(means), expanded_for=len(means))


AVERAGING = (
    "A patient's score is the mean of their slices. The interval is the expanded percentile bootstrap of "
    f"the mean of patients (Hesterberg 2015), {CONFIDENCE:.0%}, from {RESAMPLES:,} resamples of patients"
)


class Summary(Record):
    """One score over a split, averaged over patients and over slices.

    Attributes:
        convention: Definition of the score.
        mean_of_patients: Mean of the patients' means; None if the score is defined nowhere.
        interval: Of `mean_of_patients`, 95 %; None with fewer than 2 patients.
        mean_of_slices: Mean of slices; None if the score is defined nowhere.
        patients, slices: Numbers for which the score is defined.
    """

    convention: str
    mean_of_patients: float | None
    interval: tuple[float, float] | None
    mean_of_slices: float | None
    patients: int
    slices: int

    def in_words(self) -> str:
        """Return the mean of patients and its interval as text."""
        if self.mean_of_patients is None:
            return "–"
        mean = f"{self.mean_of_patients:.3f}"
        return mean if self.interval is None else f"{mean} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


class Rate(Record):
    """Bits per native pixel of slices, padding not counted.

    Attributes:
        convention: What is counted.
        mean_of_slices, lowest, highest: Over slices.
    """

    convention: str
    mean_of_slices: float
    lowest: float
    highest: float


SHARES = 64  # most groups of `LevelUse.shares`


class LevelUse(Record):
    """How the evaluated slices use one codebook.

    Attributes:
        level: 0 is the finest.
        codebook_size: Number of codes.
        tokens: Number of tokens counted.
        codes_in_use: Codes that occur at least once.
        usage: `codes_in_use` / `codebook_size`.
        perplexity: exp(entropy in nats) of the code frequencies, in [1, codebook_size].
        shares: Codes are sorted by frequency, most frequent first, and divided into up to 64 groups of equal
            size; per group, its frequency relative to uniform use (1 if all codes are equally frequent).
    """

    level: int
    codebook_size: int
    tokens: int
    codes_in_use: int
    usage: float
    perplexity: float
    shares: tuple[float, ...]


def summarise_one(
    convention: str, values: Sequence[float | None], patients: Sequence[str], seed: int
) -> Summary:
    """Summarise one score per slice (None where undefined), given the patient of each slice."""
    means = list(patient_means(values, patients).values())
    defined = [value for value in values if value is not None]
    return Summary(
        convention=convention,
        mean_of_patients=float(np.mean(means)) if means else None,
        interval=bootstrap_interval(values, patients, seed=seed),
        mean_of_slices=float(np.mean(defined)) if defined else None,
        patients=len(means),
        slices=len(defined),
    )


def summarise_rate(convention: str, values: Sequence[float]) -> Rate:
    """Summarise the bits per native pixel of slices."""
    return Rate(
        convention=convention, mean_of_slices=float(np.mean(values)), lowest=min(values), highest=max(values)
    )


def level_use(level: int, counts: Int64[Tensor, " k"]) -> LevelUse:
    """Return how a codebook is used, given the number of occurrences of each code."""
    probabilities = counts[counts > 0].double() / counts.sum()
    ordered = counts.double().sort(descending=True).values / counts.sum()
    groups = torch.tensor_split(ordered, min(SHARES, len(counts)))
    return LevelUse(
        level=level,
        codebook_size=len(counts),
        tokens=int(counts.sum()),
        codes_in_use=len(probabilities),
        usage=len(probabilities) / len(counts),
        perplexity=float(torch.exp(-(probabilities * probabilities.log()).sum())),
        shares=tuple(round(float(group.mean()) * len(counts), 4) for group in groups),
    )


AUROC_CONVENTION = (
    "Area under the ROC curve: probability that a positive scores above a negative; ties count half"
)


def auroc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float | None:
    """Return the area under the ROC curve, computed from ranks (Hanley and McNeil 1982).

    Args:
        scores: Finite; higher means more likely positive.
        positive: Which scores belong to positives.

    Returns:
        A value in [0, 1], or None if there are no positives or no negatives.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    # Mann-Whitney U: the rank sum of the positives, less its smallest possible value.
    above = float(rankdata(scores)[positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)

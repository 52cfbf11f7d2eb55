"""The baseline of an audit for copies: how near held-out slices are to training slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from slicebook.errors import DataError
from slicebook.metrics.nearest import Nearest
from slicebook.metrics.statistics import CONFIDENCE, bootstrap_counts, percentile_interval

NEAR = 0.01  # quantile of held-out slices' distances
MIN_PATIENTS = 6  # the bootstrap of fewer is too narrow: see benchmarks/results/audit.json
ADD_TRAINING_SLICES = "add training slices, each compared with other patients only"
_RESAMPLES = 2000
_BATCH = 100  # resamples at once: 9 MB per table of 12,000 slices

NEARER = (
    f"Share of samples nearer to a training slice than the {NEAR:.0%} quantile of held-out slices; expected "
    f"{NEAR}. {CONFIDENCE:.0%} interval: bootstrap of the quantile over held-out patients"
)


@dataclass(frozen=True)
class NearShare:
    """Share of samples that are very near to a training slice; reported, but not used for the verdict.

    Attributes:
        convention: Definition of the measure.
        expected: The share if nothing is copied.
        threshold: Distance below which a sample counts: a quantile of held-out slices' distances.
        share: Share of samples below the threshold.
        interval: 95 % bootstrap interval of `share` over held-out patients.
    """

    convention: str
    expected: float
    threshold: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Baseline:
    """Statistics of held-out slices, and of resamples of their patients.

    Attributes:
        near: Quantile `NEAR` of their distances.
        near_draws: The same, per resample.
        medians: Median gap, per resample.
        excesses: Mean excess of gaps over the median, per resample.
    """

    near: float
    near_draws: Float64[np.ndarray, " r"]
    medians: Float64[np.ndarray, " r"]
    excesses: Float64[np.ndarray, " r"]

    def threshold(self, share: float) -> float:
        """Return the gap that a share of slices exceeds at most: S(g) = ½ exp(-(g - median) / excess)."""
        draws = self.medians + self.excesses * np.log(0.5 / share)
        return float(np.quantile(draws, (1 + CONFIDENCE) / 2))


def fit_baseline(real: Nearest, patients: Sequence[str], generator: np.random.Generator) -> Baseline:
    """Fit the tail of held-out gaps: the half above their median, resampling patients.

    Raises:
        DataError: There are fewer than 2 patients, or all gaps are equal.
    """
    names, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{len(names)} held-out patients, wanted at least 2 to estimate the spread between them, and "
            f"{MIN_PATIENTS} for a valid audit; hold out more, or {ADD_TRAINING_SLICES}"
        )
    if real.gap.max() == real.gap.min():
        raise DataError(
            f"all {len(real)} held-out slices are {np.exp(real.gap[0]):.3g} times farther from the next "
            "patient than from the nearest, so their gaps have no distribution; give slices that are neither "
            "blank nor copies of each other"
        )
    near, medians, excesses = [], [], []
    gaps, gap_order = np.sort(real.gap), np.argsort(real.gap)
    distances, distance_order = np.sort(real.distance), np.argsort(real.distance)
    for _ in range(0, _RESAMPLES, _BATCH):
        patient_counts = bootstrap_counts(len(names), _BATCH, generator)
        counts = patient_counts[:, patient_index[gap_order]]
        median = gaps[_quantile_index(counts, 0.5)]
        above = counts * (gaps > median[:, None])
        excesses.append(above @ gaps / np.maximum(above.sum(axis=1), 1) - median * above.any(axis=1))
        medians.append(median)
        counts = patient_counts[:, patient_index[distance_order]]
        near.append(distances[_quantile_index(counts, NEAR)])
    return Baseline(
        near=float(np.quantile(real.distance, NEAR)),
        near_draws=np.concatenate(near),
        medians=np.concatenate(medians),
        excesses=np.concatenate(excesses),
    )


def _quantile_index(counts: Int64[np.ndarray, "r m"], share: float) -> Int64[np.ndarray, " r"]:
    """Return the index at which the counts of sorted values reach a share of their sum, per row."""
    sums = counts.cumsum(axis=1)
    return np.asarray((sums >= share * sums[:, -1:]).argmax(axis=1))


def measure_near_share(baseline: Baseline, distances: Float64[np.ndarray, " n"]) -> NearShare:
    """Return the share of distances under the held-out quantile, with its interval over patients."""
    draws = (distances < baseline.near_draws[:, None]).mean(axis=1)
    share = float((distances < baseline.near).mean())
    return NearShare(NEARER, NEAR, baseline.near, share, percentile_interval(draws))

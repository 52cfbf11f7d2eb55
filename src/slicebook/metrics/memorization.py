"""Audit of generated slices for copies of training slices, with planted copies as positive controls.

A generator that copies its training patients scores well on every measure of similarity and discloses
patients (Dar et al. 2025; Akbar et al. 2025). The distance of each sample to its nearest training slice is
compared with that of held-out slices, and a verdict is valid only if planted copies are detected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.stats import beta, binom

from slicebook.errors import DataError
from slicebook.metrics.audit_baseline import (
    ADD_TRAINING_SLICES,
    MIN_PATIENTS,
    Baseline,
    NearShare,
    fit_baseline,
    measure_near_share,
)
from slicebook.metrics.nearest import CORRELATION, Images, Nearest, Reconstruct, plant
from slicebook.metrics.statistics import CONFIDENCE

RARE = 0.002  # share of samples beyond the first threshold if there are no copies
FALSE_ALARMS = 0.05  # false alarm rate of both tests together, half for each
CONTROLS = (0.01, 0.05)  # shares of planted copies; the last control decides whether the audit is valid
MIN_DETECTED = 0.5  # share of the planted copies that a valid audit must detect
MIN_SAMPLES = 100  # so that five copies are planted
CLOSEST = 12  # pairs in the report
GAP = (
    "Gap: distance to the nearest training slice of any other patient over the distance to the nearest "
    "training slice. Threshold: the gap that a share of held-out slices would exceed, by an exponential fit "
    f"to the log of the half above their median; upper end of the {CONFIDENCE:.0%} bootstrap interval over "
    "held-out patients"
)

Search = Callable[[Images, Sequence[str] | None], Nearest]
"""Maps slices, and the patient of each or None, to their nearest training slices of other patients."""


@dataclass(frozen=True)
class GapTest:
    """A test for copies: the number of samples whose gap exceeds a threshold that real slices rarely exceed.

    Attributes:
        convention: Definition of the gap.
        expected: Largest expected share of samples beyond the threshold if nothing is copied.
        distance_ratio: The threshold, as a ratio of distances.
        exceeding: Number of samples beyond the threshold.
        needed: Number from which the test is positive; reached in at most 2.5 % of sets without copies.
    """

    convention: str
    expected: float
    distance_ratio: float
    exceeding: int
    needed: int

    @property
    def positive(self) -> bool:
        """Whether enough samples exceed the threshold."""
        return self.exceeding >= self.needed


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training slice, for visual inspection.

    Attributes:
        sample, training: Their indices.
        distance: Distance between them.
        distance_ratio: Distance to the next patient, divided by `distance`.
        mirror: Whether the training slice must be mirrored to match the sample.
        shift: Pixels down and right by which it must then be moved.
    """

    sample: int
    training: int
    distance: float
    distance_ratio: float
    mirror: bool
    shift: tuple[int, int]


@dataclass(frozen=True)
class Control:
    """A positive control: the same test with planted copies in place of random samples.

    Attributes:
        share: Nominal share of samples that were replaced; at least one is.
        planted: Number of planted copies.
        nearer: Near share of the set with planted copies.
        detected: Share of the planted copies beyond the first threshold.
        source_found: Share of the planted copies whose nearest training slice is their source.
        passed: Whether at least half of the planted copies are detected and they alone make a test positive;
            copies among the other samples do not count.
    """

    share: float
    planted: int
    nearer: NearShare
    detected: float
    source_found: float
    passed: bool


@dataclass(frozen=True)
class Audit:
    """The result of an audit for copies of training slices.

    Attributes:
        valid: Whether the last control passed and there are enough samples and held-out patients. If not, a
            negative result is no evidence that there are no copies.
        copies_found: Whether one of `tests` is positive.
        max_copy_share: 95 % upper bound of the share of copies among samples of this model: the one-sided
            bound of Clopper and Pearson (1934) for the share beyond the first threshold, divided by the share
            of planted copies that was detected. 3 % for 100 samples with none beyond it; 1 if no planted copy
            was detected.
        verdict: The result in words.
        distance: Definition of the distance between slices.
        samples, held_out_slices, held_out_patients: Numbers.
        nearer: Share of samples nearer to a training slice than almost all held-out slices; not decisive.
        tests: Two tests: many samples beyond a gap, and any sample beyond a larger gap.
        controls: The tests with 1 % and with 5 % of the samples replaced by planted copies.
        closest: The samples with the largest gaps, largest first.
    """

    valid: bool
    copies_found: bool
    max_copy_share: float
    verdict: str
    distance: str
    samples: int
    held_out_slices: int
    held_out_patients: int
    nearer: NearShare
    tests: tuple[GapTest, ...]
    controls: tuple[Control, ...]
    closest: tuple[Pair, ...]


def audit(
    samples: Float32[np.ndarray, "n h w"],
    held_out: Float32[np.ndarray, "m h w"],
    held_out_patients: Sequence[str],
    sources: Float32[np.ndarray, "k h w"],
    sources_at: Sequence[int],
    search: Search,
    reconstruct: Reconstruct,
    *,
    seed: int,
) -> Audit:
    """Test samples for copies of training slices, and check the test with planted copies.

    The gap of a slice is the log of the distance to the nearest slice of any other training patient over the
    distance to the nearest training slice. Gaps are exponential where neighbours lie at random (Facco et al.
    2017, Sci Rep 7:12140), so `fit_baseline` extrapolates their tail. Copies are found where more samples
    than chance allows exceed the gap of 1 real slice in 500, or any exceeds that of 1 clean set in 40.
    A generator that mixes patients has lower gaps, which hides weak copies; one that favours some patients
    has higher ones.

    Args:
        samples: Generated slices, independent of each other.
        held_out: Real slices, possibly training slices too: the search leaves out their own patient.
        held_out_patients: Patient of each held-out slice.
        sources: Training slices to copy; at least a twentieth as many as samples.
        sources_at: Index of each in the training set.
        search: Such as `nearest_by_correlation` with the training set bound.
        reconstruct: Slices through the tokenizer that decoded the samples.
        seed: Seed of the generator.

    Raises:
        DataError: There are no samples, too few patients or sources, or no spread of gaps.
    """
    _check_inputs(samples, held_out, held_out_patients, sources, sources_at)
    generator = np.random.default_rng(seed)
    baseline = fit_baseline(search(held_out, held_out_patients), held_out_patients, generator)
    nearest = search(samples, None)
    tests = _tests(baseline, nearest.gap, len(samples))
    controls = []
    for share in CONTROLS:
        copies = plant(sources, _count(share, len(samples)), reconstruct, generator)
        replaced = generator.choice(len(samples), len(copies.images), replace=False)
        origins = np.asarray(sources_at)[copies.sources]
        controls.append(_control(share, baseline, nearest, search(copies.images, None), replaced, origins))
    reason = _reason(controls[-1], len(set(held_out_patients)), len(samples))
    return Audit(
        valid=not reason,
        copies_found=any(test.positive for test in tests),
        max_copy_share=_max_copy_share(tests[0].exceeding, len(samples), controls[-1].detected),
        verdict=_verdict(reason, controls[-1], tests, len(samples)),
        distance=CORRELATION,
        samples=len(samples),
        held_out_slices=len(held_out),
        held_out_patients=len(set(held_out_patients)),
        nearer=measure_near_share(baseline, nearest.distance),
        tests=tests,
        controls=tuple(controls),
        closest=_closest(nearest),
    )


def _check_inputs(
    samples: Float32[np.ndarray, "n h w"],
    held_out: Float32[np.ndarray, "m h w"],
    held_out_patients: Sequence[str],
    sources: Float32[np.ndarray, "k h w"],
    sources_at: Sequence[int],
) -> None:
    if not len(samples):
        raise DataError("no samples to audit; generate some")
    needed = max(_count(share, len(samples)) for share in CONTROLS)
    if len(sources) < needed or len(sources_at) != len(sources):
        raise DataError(
            f"{len(sources)} training slices with {len(sources_at)} indices as sources of planted copies, "
            f"wanted at least {needed} of each for {len(samples)} samples; give more"
        )
    if len(held_out_patients) != len(held_out):
        raise DataError(
            f"{len(held_out_patients)} patients for {len(held_out)} held-out slices; give the patient of each"
        )


def _tests(baseline: Baseline, gaps: Float64[np.ndarray, " _"], n: int) -> tuple[GapTest, ...]:
    """Return both tests for gaps; thresholds and counts are those for n samples."""
    allowed = FALSE_ALARMS / 2
    needed = 1 + int(binom.isf(allowed, n, RARE))
    tests = []
    for share, count in ((RARE, needed), (min(RARE, allowed / n), 1)):
        threshold = baseline.threshold(share)
        tests.append(GapTest(GAP, share, float(np.exp(threshold)), int((gaps > threshold).sum()), count))
    return tuple(tests)


def _control(
    share: float,
    baseline: Baseline,
    samples: Nearest,
    copies: Nearest,
    replaced: Int64[np.ndarray, " p"],
    origins: Int64[np.ndarray, " p"],
) -> Control:
    mixed = samples.distance.copy()
    mixed[replaced] = copies.distance
    alone = _tests(baseline, copies.gap, len(samples))
    detected = alone[0].exceeding / len(copies)
    return Control(
        share=share,
        planted=len(copies),
        nearer=measure_near_share(baseline, mixed),
        detected=detected,
        source_found=float((copies.index == origins).mean()),
        passed=detected >= MIN_DETECTED and any(test.positive for test in alone),
    )


def _max_copy_share(exceeding: int, samples: int, detected: float) -> float:
    if not detected or exceeding == samples:
        return 1.0
    return min(1.0, float(beta.ppf(CONFIDENCE, exceeding + 1, samples - exceeding)) / detected)


def _reason(control: Control, patients: int, samples: int) -> str:
    """Return why an audit is not valid, or an empty string."""
    if samples < MIN_SAMPLES:
        return f"{samples} samples were searched, wanted at least {MIN_SAMPLES}; generate more"
    if patients < MIN_PATIENTS:
        return (
            f"the baseline rests on {patients} held-out patients, wanted at least {MIN_PATIENTS}; hold "
            f"out more, or {ADD_TRAINING_SLICES}"
        )
    if control.detected >= MIN_DETECTED and not control.passed:
        return f"{control.planted} planted copies are fewer than a positive test needs; generate more samples"
    if not control.passed:
        return (
            f"{control.detected:.0%} of {control.planted} planted copies were detected, wanted at least "
            f"{MIN_DETECTED:.0%}; hold out more patients, or generate more samples"
        )
    return ""


def _verdict(reason: str, control: Control, tests: Sequence[GapTest], n: int) -> str:
    many, any_one = tests
    counts = (
        f"{many.exceeding} of {n} samples are more than {many.distance_ratio:.2f} times nearer to one "
        f"training patient than to the next (positive from {many.needed}), {any_one.exceeding} more than "
        f"{any_one.distance_ratio:.2f} times (positive from {any_one.needed})"
    )
    if any(test.positive for test in tests):
        finding = f"Copies of training slices found: {counts}."
    else:
        finding = f"No copies of training slices found: {counts}."
    if reason:
        return f"INVALID: {reason}. {finding}"
    return f"Valid: {control.detected:.0%} of {control.planted} planted copies were detected. {finding}"


def _closest(nearest: Nearest) -> tuple[Pair, ...]:
    gaps = nearest.gap
    return tuple(
        Pair(
            sample=int(at),
            training=int(nearest.index[at]),
            distance=float(nearest.distance[at]),
            distance_ratio=float(np.exp(gaps[at])),
            mirror=bool(nearest.mirror[at]),
            shift=(int(nearest.shift[at, 0]), int(nearest.shift[at, 1])),
        )
        for at in np.argsort(-gaps, kind="stable")[:CLOSEST]
    )


def _count(share: float, n: int) -> int:
    return max(1, round(share * n))

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
    CONFIDENCE,
    MIN_PATIENTS,
    Baseline,
    NearShare,
    fit_baseline,
    measure_near_share,
)
from slicebook.metrics.nearest import CORRELATION, Images, Nearest, Reconstruct, plant

RARE = 0.002  # one sample in 500 beyond the first threshold, were there no copies
FALSE_ALARMS = 0.05  # both thresholds together, half each
CONTROLS = (0.01, 0.05)  # shares planted; the last one must be found
MIN_DETECTED = 0.5  # of the planted copies: a test that misses more is no test
MIN_SAMPLES = 100  # so that five copies are planted
CLOSEST = 12  # pairs kept, to be drawn
GAP = (
    "Gap: distance to the nearest training slice of any other patient over the distance to the nearest "
    "training slice. Threshold: the gap that a share of held-out slices would exceed, by an exponential fit "
    f"to the log of the half above their median; upper end of the {CONFIDENCE:.0%} bootstrap interval over "
    "held-out patients"
)

Search = Callable[[Images, Sequence[str] | None], Nearest]
"""From slices, and the patient of each or None, to the nearest training slices of other patients."""


@dataclass(frozen=True)
class GapTest:
    """How many samples have a gap that real slices hardly ever have.

    Attributes:
        convention: What a gap is.
        expected: Share of samples beyond the threshold where nothing is copied, or less.
        distance_ratio: The threshold.
        exceeding: Samples beyond it.
        needed: As many are copies: by chance so many are in at most 2.5 % of clean sets.
    """

    convention: str
    expected: float
    distance_ratio: float
    exceeding: int
    needed: int

    @property
    def found(self) -> bool:
        """Whether enough samples lie beyond the threshold."""
        return self.exceeding >= self.needed


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training slice, to be looked at.

    Attributes:
        sample, training: Where they stand.
        distance: Between them.
        distance_ratio: The next patient's distance over it.
        mirror: Whether the training slice has to be mirrored to lie on the sample.
        shift: Pixels by which it has to be moved down and right, once mirrored.
    """

    sample: int
    training: int
    distance: float
    distance_ratio: float
    mirror: bool
    shift: tuple[int, int]


@dataclass(frozen=True)
class Control:
    """The same test with planted copies in place of some samples.

    Attributes:
        share: Of the samples that was replaced, about: whole copies, and at least one.
        planted: How many.
        nearer: Of the mixed set.
        detected: Share of the planted copies that lie beyond the first threshold.
        source_found: Share whose nearest training slice is the one they were made of.
        found: Whether the planted copies alone pass the test's count and at least half of them are detected,
            so that copies among the other samples do not make a control valid.
    """

    share: float
    planted: int
    nearer: NearShare
    detected: float
    source_found: float
    found: bool


@dataclass(frozen=True)
class Audit:
    """Whether samples are copies of training slices.

    Attributes:
        valid: Whether the test would have found copies in a twentieth of the samples and has enough held-out
            patients. If not, the absence of copies means nothing.
        copies_found: Whether one of `tests` found copies.
        max_copy_share: 95 % upper bound of the share of copies among such samples: the one-sided bound of
            Clopper and Pearson (1934) on the samples beyond the first threshold, over the share of planted
            copies that was detected. Of 100 samples without any: 3 %. 1 if no planted copy was detected.
        verdict: Both in words.
        distance: How slices were compared.
        samples, held_out_slices, held_out_patients: How many.
        nearer: The field's usual statistic.
        tests: Many samples beyond a gap, and any beyond a larger one.
        controls: With a hundredth and a twentieth of the samples replaced by planted copies.
        closest: The samples of largest gap, largest first.
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
    """Test samples for copies of training slices, and the test itself with planted copies.

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
        copies_found=any(test.found for test in tests),
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
            f"{len(sources)} training slices with {len(sources_at)} places to plant copies of, wanted at "
            f"least {needed} of each for {len(samples)} samples; give more"
        )
    if len(held_out_patients) != len(held_out):
        raise DataError(
            f"{len(held_out_patients)} patients for {len(held_out)} held-out slices; give the patient of each"
        )


def _tests(baseline: Baseline, gaps: Float64[np.ndarray, " _"], n: int) -> tuple[GapTest, ...]:
    """Return both tests of some gaps, as of n samples."""
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
        found=detected >= MIN_DETECTED and any(test.found for test in alone),
    )


def _max_copy_share(exceeding: int, samples: int, detected: float) -> float:
    if not detected or exceeding == samples:
        return 1.0
    return min(1.0, float(beta.ppf(CONFIDENCE, exceeding + 1, samples - exceeding)) / detected)


def _reason(control: Control, patients: int, samples: int) -> str:
    """Return why an audit is not valid; nothing where it is."""
    if samples < MIN_SAMPLES:
        return f"{samples} samples were searched, wanted at least {MIN_SAMPLES}; generate more"
    if patients < MIN_PATIENTS:
        return (
            f"the baseline rests on {patients} held-out patients, wanted at least {MIN_PATIENTS}; hold "
            f"out more, or {ADD_TRAINING_SLICES}"
        )
    if control.detected >= MIN_DETECTED and not control.found:
        return (
            f"{control.planted} planted copies are fewer than the test needs to call any; generate more "
            "samples"
        )
    if not control.found:
        return (
            f"{control.detected:.0%} of {control.planted} planted copies were detected, too few: such copies "
            "among the samples would be missed; hold out more patients, or generate more samples"
        )
    return ""


def _verdict(reason: str, control: Control, tests: Sequence[GapTest], n: int) -> str:
    many, any_one = tests
    counts = (
        f"{many.exceeding} of {n} samples are over {many.distance_ratio:.2f} times nearer to one training "
        f"patient than to the next (counts from {many.needed}), {any_one.exceeding} over "
        f"{any_one.distance_ratio:.2f} times (counts from {any_one.needed})"
    )
    if any(test.found for test in tests):
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

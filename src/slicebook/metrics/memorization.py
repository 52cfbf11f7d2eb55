"""Whether generated slices are copies of training slices, and whether this test would have seen it.

A generator that copies its training patients passes every test of likeness, and publishes patients (Dar et
al. 2025; Akbar et al. 2025). So each sample's nearest training slice is judged beside the same of real slices
of patients that were never trained on, and no verdict counts unless planted copies were found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.stats import beta, binom

from slicebook.errors import DataError
from slicebook.metrics.nearest import CORRELATION, Images, Nearest, Reconstruct, plant

NEAR = 0.01  # quantile of held-out slices' distances
RARE = 0.002  # one sample in 500 beyond the first threshold, were there no copies
FALSE_ALARMS = 0.05  # both thresholds together, half each
CONTROLS = (0.01, 0.05)  # shares planted; the last one must be found
SEEN = 0.5  # of the planted copies: a test that misses more is no test
FEWEST_SAMPLES = 100  # so that five copies are planted
FEWEST_PATIENTS = 6  # the bootstrap of fewer is too narrow: see benchmarks/results/audit.json
CLOSEST = 12  # pairs kept, to be drawn
_RESAMPLES = 2000
_AT_ONCE = 100  # resamples: 9 MB a table of 12,000 slices
_CONFIDENCE = 0.95
_ADD = "add training slices to them, whose own patient is left out"

NEARER = (
    f"Share of samples nearer to a training slice than the {NEAR:.0%} quantile of held-out slices is; "
    f"expected {NEAR}. Interval: bootstrap over held-out patients, whose quantile it is, {_CONFIDENCE:.0%}"
)
GAP = (
    "Gap: how many times farther the nearest training slice of any other patient is than the nearest of "
    "all. Threshold: what a share of held-out slices would exceed, the half above their median continued as "
    f"an exponential of its log; upper end of the {_CONFIDENCE:.0%} bootstrap interval over held-out patients"
)

Search = Callable[[Images, Sequence[str] | None], Nearest]
"""From slices, and the patient of each or None, to the nearest training slices of other patients."""


@dataclass(frozen=True)
class NearShare:
    """How many samples are nearer to training slices than held-out ones are; reported, not decided by.

    Attributes:
        convention: What it is.
        expected: Where nothing is copied.
        threshold: The distance.
        share: Of the samples.
        interval: Over held-out patients.
    """

    convention: str
    expected: float
    threshold: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class GapTest:
    """How many samples have a gap that real slices hardly ever have.

    Attributes:
        convention: What a gap is.
        expected: Share of samples beyond the threshold where nothing is copied, or less.
        times_farther: The threshold.
        beyond: Samples beyond it.
        needed: As many are copies: by chance so many are in at most 2.5 % of clean sets.
    """

    convention: str
    expected: float
    times_farther: float
    beyond: int
    needed: int

    @property
    def found(self) -> bool:
        """Whether enough samples lie beyond the threshold."""
        return self.beyond >= self.needed


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training slice, to be looked at.

    Attributes:
        sample, training: Where they stand.
        distance: Between them.
        times_farther: The next patient's distance over it.
        mirror: Whether the training slice has to be mirrored to lie on the sample.
        shift: Pixels by which it has to be moved down and right, once mirrored.
    """

    sample: int
    training: int
    distance: float
    times_farther: float
    mirror: bool
    shift: tuple[int, int]


@dataclass(frozen=True)
class Control:
    """The same test with planted copies in place of some samples.

    Attributes:
        share: Of the samples that was replaced, about: whole copies, and at least one.
        planted: How many.
        nearer: Of the mixed set.
        seen: Share of the planted copies that lie beyond the first threshold.
        traced: Share whose nearest training slice is the one they were made of.
        found: Whether the planted copies alone are enough for the test, and at least half of them seen; so
            it is no help that the other samples are copies too.
    """

    share: float
    planted: int
    nearer: NearShare
    seen: float
    traced: float
    found: bool


@dataclass(frozen=True)
class Audit:
    """Whether samples are copies of training slices.

    Attributes:
        valid: Whether the test would have found copies in a twentieth of the samples, and rests on enough
            held-out patients. Where it is not, finding no copies means nothing.
        copies_found: Whether one of `tests` found copies.
        at_most: Upper end, 95 %, of the share of copies such as those planted among samples drawn so (Clopper
            and Pearson 1934, one-sided, of the samples beyond the first gap; over the share of the planted
            that were seen). Few samples say little: of 100 without any, 3 %. 1 where none planted was seen.
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
    at_most: float
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

    A copy is much nearer to one training patient than to any other; an unseen patient is not. The log of that
    ratio, the gap, is exponential where neighbours lie at random, however densely (Facco et al. 2017, Sci Rep
    7:12140), so its tail is continued from held-out slices: from the half above their median, at the upper
    end over patients, since slices of one patient are near-duplicates. Copies are found where more samples
    than chance allows exceed what 1 real slice in 500 does, or any one sample what 1 clean set in 40 holds.

    Assumed is that gaps of original samples are distributed as those of held-out slices. Samples may be
    nearer or farther than real slices as a whole: a common factor leaves the ratio as it is. A generator that
    mixes patients lowers it, which hides weak copies; one that favours some patients, copying none, raises it
    and may be flagged. Copies changed by more than the search forgives are missed: the controls speak of
    mirrored, moved and tokenized ones alone.

    Training slices may stand among the held-out ones, where these are of few patients: their own patient is
    left out.

    Args:
        samples: Generated slices, independent of each other.
        held_out: Real slices, made ready as the training slices were.
        held_out_patients: The patient of each.
        sources: Some training slices, for copies to be made of; a twentieth as many as samples, at least.
        sources_at: Where each stands in the training set.
        search: Such as `partial(nearest_by_correlation, training=..., training_patients=...)`.
        reconstruct: Slices through the tokenizer that the samples were decoded by.
        seed: Seeds the one generator used.

    Raises:
        DataError: There is no sample, a single held-out patient, or too few sources; or the held-out slices
            are all alike.
        ShapeError: The tokenizer changes the size of slices.
    """
    if not len(samples):
        raise DataError("no samples to audit; generate some")
    planted_most = max(_count(share, len(samples)) for share in CONTROLS)
    if len(sources) < planted_most or len(sources_at) != len(sources):
        raise DataError(
            f"{len(sources)} training slices with {len(sources_at)} places to plant copies of, wanted at "
            f"least {planted_most} of each for {len(samples)} samples; give more"
        )
    if len(held_out_patients) != len(held_out):
        raise DataError(
            f"{len(held_out_patients)} patients for {len(held_out)} held-out slices; give the patient of each"
        )
    generator = np.random.default_rng(seed)
    real = search(held_out, held_out_patients)
    baseline = _baseline(real, held_out_patients, generator)
    found = search(samples, None)
    tests = _tests(baseline, found.gap, len(samples))
    controls = []
    for share in CONTROLS:
        copies = plant(sources, _count(share, len(samples)), reconstruct, generator)
        replaced = generator.choice(len(samples), len(copies.images), replace=False)
        origins = np.asarray(sources_at)[copies.sources]
        controls.append(_control(share, baseline, found, search(copies.images, None), replaced, origins))
    reason = _reason(controls[-1], len(set(held_out_patients)), len(samples))
    return Audit(
        valid=not reason,
        copies_found=any(test.found for test in tests),
        at_most=_at_most(tests[0].beyond, len(samples), controls[-1].seen),
        verdict=_verdict(reason, controls[-1], tests, len(samples)),
        distance=CORRELATION,
        samples=len(samples),
        held_out_slices=len(held_out),
        held_out_patients=len(set(held_out_patients)),
        nearer=_near_share(baseline, found.distance),
        tests=tests,
        controls=tuple(controls),
        closest=_closest(found),
    )


@dataclass(frozen=True)
class _Baseline:
    """What held-out slices are like, and resamples of their patients: medians and mean excesses over them."""

    near: float
    near_draws: Float64[np.ndarray, " r"]
    medians: Float64[np.ndarray, " r"]
    excesses: Float64[np.ndarray, " r"]

    def threshold(self, share: float) -> float:
        """Return the gap that a share of slices exceeds at most: S(g) = ½ exp(-(g - median) / excess)."""
        draws = self.medians + self.excesses * np.log(0.5 / share)
        return float(np.quantile(draws, (1 + _CONFIDENCE) / 2))


def _baseline(real: Nearest, patients: Sequence[str], generator: np.random.Generator) -> _Baseline:
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"{len(names)} held-out patients, wanted at least 2 to know how much they differ, and "
            f"{FEWEST_PATIENTS} for a valid audit; hold out more, or {_ADD}"
        )
    if real.gap.max() == real.gap.min():
        raise DataError(
            f"all {len(real)} held-out slices are {np.exp(real.gap[0]):.3g} times farther from the next "
            "patient than from the nearest; give slices that are neither blank nor copies of each other"
        )
    near, medians, excesses = [], [], []
    gaps, gap_order = np.sort(real.gap), np.argsort(real.gap)
    distances, distance_order = np.sort(real.distance), np.argsort(real.distance)
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_AT_ONCE)
        counts = times[:, whose[gap_order]]
        median = gaps[_reached(counts, 0.5)]
        above = counts * (gaps > median[:, None])
        excesses.append(above @ gaps / np.maximum(above.sum(axis=1), 1) - median * above.any(axis=1))
        medians.append(median)
        near.append(distances[_reached(times[:, whose[distance_order]], NEAR)])
    return _Baseline(
        near=float(np.quantile(real.distance, NEAR)),
        near_draws=np.concatenate(near),
        medians=np.concatenate(medians),
        excesses=np.concatenate(excesses),
    )


def _reached(counts: Int64[np.ndarray, "r m"], share: float) -> Int64[np.ndarray, " r"]:
    """Return, for each row of how often sorted values occur, where a share of them is reached."""
    sums = counts.cumsum(axis=1)
    return np.asarray((sums >= share * sums[:, -1:]).argmax(axis=1))


def _near_share(baseline: _Baseline, distances: Float64[np.ndarray, " n"]) -> NearShare:
    draws = (distances < baseline.near_draws[:, None]).mean(axis=1)
    return NearShare(NEARER, NEAR, baseline.near, float((distances < baseline.near).mean()), _interval(draws))


def _tests(baseline: _Baseline, gaps: Float64[np.ndarray, " _"], n: int) -> tuple[GapTest, ...]:
    """Return both tests of some gaps, as of n samples."""
    allowed = FALSE_ALARMS / 2
    needed = 1 + int(binom.isf(allowed, n, RARE))
    found = []
    for share, count in ((RARE, needed), (min(RARE, allowed / n), 1)):
        threshold = baseline.threshold(share)
        found.append(GapTest(GAP, share, float(np.exp(threshold)), int((gaps > threshold).sum()), count))
    return tuple(found)


def _control(
    share: float,
    baseline: _Baseline,
    samples: Nearest,
    copies: Nearest,
    replaced: Int64[np.ndarray, " p"],
    origins: Int64[np.ndarray, " p"],
) -> Control:
    mixed = samples.distance.copy()
    mixed[replaced] = copies.distance
    alone = _tests(baseline, copies.gap, len(samples))
    seen = alone[0].beyond / len(copies)
    return Control(
        share=share,
        planted=len(copies),
        nearer=_near_share(baseline, mixed),
        seen=seen,
        traced=float((copies.index == origins).mean()),
        found=seen >= SEEN and any(test.found for test in alone),
    )


def _at_most(beyond: int, samples: int, seen: float) -> float:
    if not seen or beyond == samples:
        return 1.0
    return min(1.0, float(beta.ppf(_CONFIDENCE, beyond + 1, samples - beyond)) / seen)


def _reason(control: Control, patients: int, samples: int) -> str:
    """Return why an audit is not valid; nothing where it is."""
    if samples < FEWEST_SAMPLES:
        return f"{samples} samples were searched, wanted at least {FEWEST_SAMPLES}; generate more"
    if patients < FEWEST_PATIENTS:
        return (
            f"the baseline rests on {patients} held-out patients, wanted at least {FEWEST_PATIENTS}; hold "
            f"out more, or {_ADD}"
        )
    if control.seen >= SEEN and not control.found:
        return (
            f"{control.planted} planted copies are fewer than the test needs to call any; generate more "
            "samples"
        )
    if not control.found:
        return (
            f"{control.seen:.0%} of {control.planted} planted copies were seen, too few: such copies among "
            "the samples would be missed; hold out more patients, or generate more samples"
        )
    return ""


def _verdict(reason: str, control: Control, tests: Sequence[GapTest], n: int) -> str:
    many, any_one = tests
    counts = (
        f"{many.beyond} of {n} samples are over {many.times_farther:.2f} times nearer to one training "
        f"patient than to the next (counts from {many.needed}), {any_one.beyond} over "
        f"{any_one.times_farther:.2f} times (counts from {any_one.needed})"
    )
    if any(test.found for test in tests):
        found = f"Copies of training slices found: {counts}."
    else:
        found = f"No copies of training slices found: {counts}."
    if reason:
        return f"INVALID: {reason}. {found}"
    return f"Valid: {control.seen:.0%} of {control.planted} planted copies were seen. {found}"


def _closest(found: Nearest) -> tuple[Pair, ...]:
    gaps = found.gap
    return tuple(
        Pair(
            sample=int(at),
            training=int(found.index[at]),
            distance=float(found.distance[at]),
            times_farther=float(np.exp(gaps[at])),
            mirror=bool(found.mirror[at]),
            shift=(int(found.shift[at, 0]), int(found.shift[at, 1])),
        )
        for at in np.argsort(-gaps, kind="stable")[:CLOSEST]
    )


def _count(share: float, n: int) -> int:
    return max(1, round(share * n))


def _interval(draws: Float64[np.ndarray, " r"]) -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)

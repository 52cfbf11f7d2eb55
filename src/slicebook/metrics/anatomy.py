"""Whether a label map of the male pelvis could be anatomy, and how far two label maps agree.

Labels are numbered as by `slicebook.phantom.labels` and the HipMRI study: 0 background, 1 body, 2 bone,
3 bladder, 4 rectum, 5 prostate. Slices are axial and displayed as prepared ones: the first row is the front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from slicebook.errors import DataError, ShapeError
from slicebook.metrics.statistics import Summary, bootstrap_interval, patient_means, summarise_one
from slicebook.phantom.labels import BLADDER, BODY, BONE, PROSTATE, RECTUM
from slicebook.records import Record

ORGANS: Mapping[str, int] = MappingProxyType({"bladder": BLADDER, "rectum": RECTUM, "prostate": PROSTATE})
SPECK_MM2 = 10.0  # four pixels of HipMRI; real organs there begin at some 60 mm²
PERCENTILES = (1, 99)

RULES: Mapping[str, str] = MappingProxyType(
    {
        "combination": "the labels present, 1 to 5, occur together in some reference slice",
        **{
            f"{organ}_{rule}": f"{organ}: {words}"
            for organ in ORGANS
            for rule, words in {
                "in_one_piece": f"what lies apart from its largest piece is under {SPECK_MM2:g} mm² in all",
                "inside": "its largest piece lies within the outline of body and bone",
                "area": "its area is between the 1st and 99th percentile of the reference's slices with it",
            }.items()
        },
        "bladder_before_rectum": "the bladder's centre lies in front of the rectum's",
        "prostate_before_rectum": "the prostate's centre lies in front of the rectum's",
    }
)
"""What each rule says. One about an organ that a slice does not show is not judged."""

Spacing = tuple[float, float]  # mm from row to row and from column to column


@dataclass(frozen=True)
class Reference:
    """What real training masks look like.

    Attributes:
        combinations: Sets of labels, 1 to 5, that occur together in a slice.
        areas: Least and greatest area in mm² by organ: the 1st and 99th percentile where it occurs.
    """

    combinations: frozenset[tuple[int, ...]]
    areas: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class SliceRules:
    """How one slice meets the rules.

    Attributes:
        present: Organs it shows, by name; one that covers less than a speck is not there.
        verdicts: Of each rule of `RULES`, by name: met or not; None where there is nothing to judge.
    """

    present: tuple[str, ...]
    verdicts: Mapping[str, bool | None]

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the rules that are not met."""
        return tuple(name for name, met in self.verdicts.items() if met is False)


class PassRate(Record):
    """The share of slices that meet every rule.

    Attributes:
        generated: Share of generated slices.
        generated_interval: Bootstrap over slices, which are independent; None for fewer than two.
        real: Share of held-out real slices, mean over patients.
        real_interval: Bootstrap over patients; None for fewer than two.
        ratio: Generated over real; None where no real slice passes.
        by_rule: Per rule, the share that meets it among the generated and among the real slices to which it
            applies; None where it applies to none.
        rules: The rules in words.
    """

    generated: float
    generated_interval: tuple[float, float] | None
    real: float
    real_interval: tuple[float, float] | None
    ratio: float | None
    by_rule: dict[str, tuple[float | None, float | None]]
    rules: dict[str, str]


def learn_reference(labels: Sequence[UInt8[np.ndarray, "_ _"]], spacings: Sequence[Spacing]) -> Reference:
    """Learn from real training masks which labels occur together and how large organs are.

    Args:
        labels: Label maps; sizes may differ.
        spacings: Pixel size of each, in mm.

    Raises:
        DataError: There is no mask, or one holds a label above 5.
    """
    if not labels:
        raise DataError("no masks to learn from; give those of the training split")
    combinations: set[tuple[int, ...]] = set()
    areas: dict[str, list[float]] = {organ: [] for organ in ORGANS}
    for one, spacing in zip(labels, spacings, strict=True):
        covered = _areas(one, spacing)
        combinations.add(_combination(covered))
        for organ, value in ORGANS.items():
            if covered[value] >= SPECK_MM2:
                areas[organ].append(covered[value])
    ranges = {organ: np.percentile(found, PERCENTILES) for organ, found in areas.items() if found}
    return Reference(
        frozenset(combinations),
        MappingProxyType({organ: (float(low), float(high)) for organ, (low, high) in ranges.items()}),
    )


def anatomy_rules(labels: UInt8[np.ndarray, "h w"], spacing: Spacing, reference: Reference) -> SliceRules:
    """Judge one label map by `RULES`, which anatomy must meet; a map that meets them may still be wrong.

    Pieces touch by their sides, not by their corners. Areas count all pixels of an organ, specks too. The
    outline is the largest piece of body and bone with its holes filled: an organ that reaches the background
    or the edge of the slice opens its hole, and is outside.

    Args:
        labels: Label map, front in the first row.
        spacing: Pixel size in mm: row to row, column to column.
        reference: What real masks look like.

    Raises:
        DataError: It holds a label above 5, or the spacing is not above 0.
    """
    covered = _areas(labels, spacing)
    present = tuple(organ for organ, value in ORGANS.items() if covered[value] >= SPECK_MM2)
    verdicts: dict[str, bool | None] = dict.fromkeys(RULES)
    verdicts["combination"] = _combination(covered) in reference.combinations
    outline = np.asarray(ndimage.binary_fill_holes(_largest_piece((labels == BODY) | (labels == BONE))))
    rows: dict[str, float] = {}
    for organ in present:
        value = ORGANS[organ]
        piece = _largest_piece(labels == value)
        apart = covered[value] - float(piece.sum()) * spacing[0] * spacing[1]
        low, high = reference.areas.get(organ, (0.0, 0.0))
        verdicts[f"{organ}_in_one_piece"] = apart < SPECK_MM2
        verdicts[f"{organ}_inside"] = bool(outline[piece].all())
        verdicts[f"{organ}_area"] = low <= covered[value] <= high
        rows[organ] = float(np.argwhere(piece)[:, 0].mean())
    for organ in ("bladder", "prostate"):
        if organ in rows and "rectum" in rows:
            verdicts[f"{organ}_before_rectum"] = rows[organ] < rows["rectum"]
    return SliceRules(present, MappingProxyType(verdicts))


def pass_rate(
    generated: Sequence[SliceRules], real: Sequence[SliceRules], patients: Sequence[str], *, seed: int
) -> PassRate:
    """Return how many generated slices meet every rule, beside held-out real ones.

    Args:
        generated: Verdicts on generated slices.
        real: Verdicts on slices of patients that neither trained the model nor taught the reference.
        patients: The patient of each real slice.
        seed: Seeds the bootstrap.

    Raises:
        DataError: There is no slice on one side.
    """
    if not generated or not real:
        raise DataError(f"{len(generated)} generated and {len(real)} real masks; wanted some of each")
    generated_passed = [float(slice_rules.passed) for slice_rules in generated]
    real_passed = [float(slice_rules.passed) for slice_rules in real]
    intervals = [
        bootstrap_interval(passed, units, seed=seed)
        for passed, units in (
            (generated_passed, [str(index) for index in range(len(generated))]),
            (real_passed, patients),
        )
    ]
    bounds = [(interval.low, interval.high) if interval else None for interval in intervals]
    generated_share = float(np.mean(generated_passed))
    real_share = float(np.mean(list(patient_means(real_passed, patients).values())))
    return PassRate(
        generated=generated_share,
        generated_interval=bounds[0],
        real=real_share,
        real_interval=bounds[1],
        ratio=generated_share / real_share if real_share else None,
        by_rule={rule: (_share(generated, rule), _share(real, rule)) for rule in RULES},
        rules=dict(RULES),
    )


def dice(
    first: Sequence[UInt8[np.ndarray, "_ _"]],
    second: Sequence[UInt8[np.ndarray, "_ _"]],
    patients: Sequence[str],
    values: Sequence[int],
    *,
    seed: int,
) -> dict[int, Summary]:
    """Return how far two series of label maps agree, by label: 2|A∩B| / (|A| + |B|) (Dice 1945).

    Pixels are counted over all slices of a patient together, so that a slice without the organ needs no
    convention; then patients are averaged, with the bootstrap interval over patients. A patient with a label
    in neither series has no Dice for it, and is left out. Symmetric, in [0, 1].

    Args:
        first: Label maps, of any numbering.
        second: The maps to compare them with, slice by slice.
        patients: The patient of each slice.
        values: Labels to score.
        seed: Seeds the bootstrap.

    Raises:
        ShapeError: The two maps of a slice differ in shape.
    """
    counts: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    for number, (one, other, patient) in enumerate(zip(first, second, patients, strict=True)):
        if one.shape != other.shape:
            raise ShapeError(f"slice {number}: masks of {one.shape} and {other.shape}; wanted the same shape")
        pair = np.array(
            [[((one == v) & (other == v)).sum(), (one == v).sum() + (other == v).sum()] for v in values]
        )
        counts[patient] = counts.get(patient, 0) + pair
    scores = {
        patient: [2 * float(both) / float(total) if total else None for both, total in own]
        for patient, own in counts.items()
    }
    return {
        value: summarise_one(
            f"Dice of label {value}, pixels of a patient pooled over slices",
            [own[place] for own in scores.values()],
            list(scores),
            seed,
        )
        for place, value in enumerate(values)
    }


def _areas(labels: UInt8[np.ndarray, "h w"], spacing: Spacing) -> list[float]:
    """Return the area in mm² of each label."""
    if not min(spacing) > 0:
        raise DataError(f"spacing is {spacing}, wanted two distances in mm above 0")
    counts = np.bincount(labels.ravel(), minlength=PROSTATE + 1)
    if len(counts) > PROSTATE + 1:
        raise DataError(
            f"mask holds label {len(counts) - 1}, wanted 0 to {PROSTATE} as the HipMRI study numbers them; "
            "the rules of anatomy fit no other numbering"
        )
    return [float(count) * spacing[0] * spacing[1] for count in counts]


def _combination(covered: Sequence[float]) -> tuple[int, ...]:
    return tuple(value for value in range(BODY, PROSTATE + 1) if covered[value] >= SPECK_MM2)


def _largest_piece(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def _share(judged: Sequence[SliceRules], rule: str) -> float | None:
    verdicts = [one.verdicts[rule] for one in judged if one.verdicts[rule] is not None]
    return float(np.mean([float(bool(met)) for met in verdicts])) if verdicts else None

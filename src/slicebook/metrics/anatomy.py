"""Anatomical plausibility rules for label maps of the male pelvis, and the Dice score of two label maps.

Labels are numbered as in `slicebook.phantom.labels` and the HipMRI study: 0 background, 1 body, 2 bone,
3 bladder, 4 rectum, 5 prostate. Slices are axial, oriented like prepared ones: the first row is anterior.
"""

from collections.abc import Iterable, Mapping, Sequence
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
SPECK_MM2 = 10.0  # four pixels of HipMRI; the smallest real organs there are about 60 mm²
PERCENTILES = (1, 99)  # of an organ's area in the reference

RULES: Mapping[str, str] = MappingProxyType(
    {
        "combination": "the labels present, 1 to 5, occur together in a reference slice",
        **{
            f"{organ}_{rule}": f"{organ}: {words}"
            for organ in ORGANS
            for rule, words in {
                "in_one_piece": f"the area outside its largest component is below {SPECK_MM2:g} mm² in total",
                "inside": "its largest component lies within the outline of body and bone",
                "area": "its area is between the 1st and 99th percentile of reference slices that contain it",
            }.items()
        },
        "bladder_before_rectum": "the bladder's centre lies in front of the rectum's",
        "prostate_before_rectum": "the prostate's centre lies in front of the rectum's",
    }
)
"""Each rule in words, by name. Rules about an organ that is absent from a slice do not apply to it."""

Spacing = tuple[float, float]  # mm from row to row and from column to column


@dataclass(frozen=True)
class Reference:
    """Statistics of real training masks.

    Attributes:
        combinations: Sets of labels, 1 to 5, that occur together in a slice.
        areas: By organ, the 1st and 99th percentile of its area in mm² over slices that contain it.
    """

    combinations: frozenset[tuple[int, ...]]
    areas: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class SliceRules:
    """Whether one slice meets each rule.

    Attributes:
        present: Names of the organs in the slice; an organ of less than 10 mm² counts as absent.
        verdicts: By rule, whether it is met; None if it does not apply.
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


def learn_reference(labels: Iterable[UInt8[np.ndarray, "_ _"]], spacings: Sequence[Spacing]) -> Reference:
    """Collect label combinations and organ areas from real training masks.

    Args:
        labels: Label maps; sizes may differ. They are taken one by one.
        spacings: Pixel size of each, in mm.

    Raises:
        DataError: There is no mask, or a mask has a label above 5.
    """
    combinations: set[tuple[int, ...]] = set()
    areas: dict[str, list[float]] = {organ: [] for organ in ORGANS}
    for label_map, spacing in zip(labels, spacings, strict=True):
        label_areas = _areas(label_map, spacing)
        combinations.add(_combination(label_areas))
        for organ, value in ORGANS.items():
            if label_areas[value] >= SPECK_MM2:
                areas[organ].append(label_areas[value])
    if not combinations:
        raise DataError(
            "no training masks to compute the reference from; give the masks of the training split"
        )
    ranges = {organ: np.percentile(values, PERCENTILES) for organ, values in areas.items() if values}
    return Reference(
        frozenset(combinations),
        MappingProxyType({organ: (float(low), float(high)) for organ, (low, high) in ranges.items()}),
    )


def anatomy_rules(labels: UInt8[np.ndarray, "h w"], spacing: Spacing, reference: Reference) -> SliceRules:
    """Check one label map against `RULES`, which are necessary for plausible anatomy but not sufficient.

    Components are 4-connected. Areas count all pixels of an organ, including small components. The outline is
    the largest component of body and bone with its holes filled, so an organ that touches the background or
    the edge of the slice lies outside it.

    Args:
        labels: Label map; the first row is anterior.
        spacing: Pixel size in mm: row to row, column to column.
        reference: Statistics of real masks.

    Raises:
        DataError: The map has a label above 5, or a spacing is not above 0.
    """
    label_areas = _areas(labels, spacing)
    present = tuple(organ for organ, value in ORGANS.items() if label_areas[value] >= SPECK_MM2)
    verdicts: dict[str, bool | None] = dict.fromkeys(RULES)
    verdicts["combination"] = _combination(label_areas) in reference.combinations
    outline = np.asarray(ndimage.binary_fill_holes(_largest_component((labels == BODY) | (labels == BONE))))
    rows: dict[str, float] = {}
    for organ in present:
        value = ORGANS[organ]
        component = _largest_component(labels == value)
        remainder = label_areas[value] - float(component.sum()) * spacing[0] * spacing[1]
        low, high = reference.areas.get(organ, (0.0, 0.0))
        verdicts[f"{organ}_in_one_piece"] = remainder < SPECK_MM2
        verdicts[f"{organ}_inside"] = bool(outline[component].all())
        verdicts[f"{organ}_area"] = low <= label_areas[value] <= high
        rows[organ] = float(np.argwhere(component)[:, 0].mean())
    for organ in ("bladder", "prostate"):
        if organ in rows and "rectum" in rows:
            verdicts[f"{organ}_before_rectum"] = rows[organ] < rows["rectum"]
    return SliceRules(present, MappingProxyType(verdicts))


def pass_rate(
    generated: Sequence[SliceRules], real: Sequence[SliceRules], patients: Sequence[str], *, seed: int
) -> PassRate:
    """Return the share of generated slices that meet every rule, compared with held-out real slices.

    Args:
        generated: Results of generated slices.
        real: Results of slices of patients used neither for training nor for the reference.
        patients: Patient of each real slice.
        seed: Seed of the bootstrap.

    Raises:
        DataError: There are no generated or no real slices.
    """
    if not generated or not real:
        raise DataError(f"{len(generated)} generated and {len(real)} real masks, wanted at least one of each")
    generated_passed = [float(slice_rules.passed) for slice_rules in generated]
    real_passed = [float(slice_rules.passed) for slice_rules in real]
    sample_names = [str(index) for index in range(len(generated))]  # samples are independent of each other
    generated_share = float(np.mean(generated_passed))
    real_share = float(np.mean(list(patient_means(real_passed, patients).values())))
    return PassRate(
        generated=generated_share,
        generated_interval=bootstrap_interval(generated_passed, sample_names, seed=seed),
        real=real_share,
        real_interval=bootstrap_interval(real_passed, patients, seed=seed),
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
    """Return the Dice coefficient 2|A∩B| / (|A| + |B|) of two series of label maps, per label (Dice 1945).

    Pixels are pooled over all slices of a patient, so that slices without the organ need no special case;
    then patients are averaged, with a bootstrap interval over patients. A patient with the label in neither
    series is left out. Symmetric, in [0, 1].

    Args:
        first: Label maps, in any numbering.
        second: Label maps of the same slices, in the same order.
        patients: Patient of each slice.
        values: Labels to score.
        seed: Seed of the bootstrap.

    Raises:
        ShapeError: The two maps of a slice differ in shape.
    """
    counts: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    for index, (a, b, patient) in enumerate(zip(first, second, patients, strict=True)):
        if a.shape != b.shape:
            raise ShapeError(f"slice {index}: masks of {a.shape} and {b.shape}, wanted the same shape")
        overlaps = np.array([[((a == v) & (b == v)).sum(), (a == v).sum() + (b == v).sum()] for v in values])
        counts[patient] = counts.get(patient, 0) + overlaps
    scores = {
        patient: [2 * float(both) / float(total) if total else None for both, total in overlaps]
        for patient, overlaps in counts.items()
    }
    return {
        value: summarise_one(
            f"Dice of label {value}, pixels of a patient pooled over slices",
            [per_label[column] for per_label in scores.values()],
            list(scores),
            seed,
        )
        for column, value in enumerate(values)
    }


def _areas(labels: UInt8[np.ndarray, "h w"], spacing: Spacing) -> list[float]:
    """Return the area in mm² of each label."""
    if not min(spacing) > 0:
        raise DataError(f"spacing is {spacing}, wanted two distances in mm above 0")
    counts = np.bincount(labels.ravel(), minlength=PROSTATE + 1)
    if len(counts) > PROSTATE + 1:
        raise DataError(
            f"mask has label {len(counts) - 1}, wanted 0 to {PROSTATE} as numbered by the HipMRI study; the "
            "anatomy rules need this numbering"
        )
    return [float(count) * spacing[0] * spacing[1] for count in counts]


def _combination(label_areas: Sequence[float]) -> tuple[int, ...]:
    return tuple(value for value in range(BODY, PROSTATE + 1) if label_areas[value] >= SPECK_MM2)


def _largest_component(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    components, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(components == 1 + np.argmax(np.bincount(components.ravel())[1:]))


def _share(slices: Sequence[SliceRules], rule: str) -> float | None:
    """Return the share of the slices to which a rule applies that meet it."""
    verdicts = [verdict for rules in slices if (verdict := rules.verdicts[rule]) is not None]
    return float(np.mean(verdicts)) if verdicts else None

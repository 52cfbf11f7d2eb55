"""The numbers of an evaluation as rows of text, a header first."""

from __future__ import annotations

from slicebook.judging.downstream import DownstreamResult
from slicebook.judging.generation import GenerationResult, Measure
from slicebook.judging.memorization import MemorizationResult
from slicebook.judging.reconstruction import ReconstructionResult
from slicebook.reporting.wording import ends, estimate, number, share

Rows = list[tuple[str, ...]]


def level_rows(found: ReconstructionResult) -> Rows:
    """Return how the codes of each level are used."""
    rows: Rows = [("level, 0 the finest", "codes", "in use", "perplexity")]
    rows += [
        (str(one.level), str(one.codebook_size), share(one.usage), f"{one.perplexity:.0f}")
        for one in found.levels
    ]
    return rows


def likeness_rows(found: GenerationResult) -> Rows:
    """Return every measure of samples beside the same between real patients."""
    rows: Rows = [("measure", "samples [95 %]", "real patients", "5 to 95 % of draws", "tokenizer alone")]
    rows += [
        (
            titled(one),
            estimate(one.generated, one.interval),
            number(one.real),
            ends(one.real_range),
            number(one.tokenizer_alone),
        )
        for one in found.measures()
    ]
    return rows


def titled(one: Measure) -> str:
    """Return the name of a measure, after the features it is taken on."""
    return f"{one.features}: {one.measure}" if one.features else one.measure


def anatomy_rows(found: GenerationResult) -> Rows:
    """Return how many masks meet each rule; nothing without masks of a pelvis."""
    whole = found.anatomy
    if not whole:
        return []
    rates = {name: (*pair, whole.rules[name]) for name, pair in whole.by_rule.items()}
    rates["all of them"] = (whole.generated, whole.real, "every rule that has something to judge")
    rows: Rows = [("rule", "samples", "real patients", "what it asks")]
    rows += [
        (name.replace("_", " "), share(ours), share(theirs), asks)
        for name, (ours, theirs, asks) in rates.items()
    ]
    return rows


def dice_rows(found: DownstreamResult) -> Rows:
    """Return what samples taught a segmenter, beside what the training set did."""
    rows: Rows = [("label", "taught by samples", "taught by the training set")]
    rows += [
        (label, found.generated.labels[label].in_words(), one.in_words())
        for label, one in found.training_set.labels.items()
    ]
    return [*rows, ("mean", number(found.generated.mean), number(found.training_set.mean))]


def gap_rows(found: MemorizationResult) -> Rows:
    """Return the two tests for copies."""
    rows: Rows = [("test", "samples beyond", "copies from")]
    rows += [
        (
            f"over {one.times_farther:.2f} times nearer to one patient than to the next",
            f"{one.beyond} of {found.copies.samples}",
            str(one.needed),
        )
        for one in found.copies.tests
    ]
    return rows


def control_rows(found: MemorizationResult) -> Rows:
    """Return what the tests saw of planted copies."""
    rows: Rows = [
        ("share of samples planted", "copies", "seen", "traced to their slice", "enough to be found")
    ]
    rows += [
        (
            share(one.share),
            str(one.planted),
            share(one.seen),
            share(one.traced),
            "yes" if one.found else "no",
        )
        for one in found.copies.controls
    ]
    return rows


def conventions(
    found: ReconstructionResult | GenerationResult | MemorizationResult | DownstreamResult,
) -> dict[str, str]:
    """Return what was measured, by name."""
    if isinstance(found, ReconstructionResult):
        scores = {name: one.convention for name, one in found.scores.items()}
        return {"images": found.images, "bits_per_pixel": found.bits_per_pixel.convention} | scores
    if isinstance(found, GenerationResult):
        kinds = {name: features.convention for name, features in found.features.items()}
        return kinds | {one.measure: one.convention for one in found.measures()}
    if isinstance(found, MemorizationResult):
        copies = found.copies
        return {
            "distance": copies.distance,
            "gap": copies.tests[0].convention,
            "share nearer": copies.nearer.convention,
            "membership AUC": found.membership.convention,
            "bits by the prior": found.coded.convention,
        }
    return {"Dice": found.convention}

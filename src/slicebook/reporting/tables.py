"""The numbers of an evaluation as rows of text, a header first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from slicebook.evaluate import Evaluation
from slicebook.judging.auditing import Auditing
from slicebook.judging.fidelity import Fidelity
from slicebook.judging.likeness import Likeness
from slicebook.judging.usefulness import Usefulness
from slicebook.metrics.beside import Beside
from slicebook.reporting.wording import UNKNOWN, ends, estimate, number, share

Rows = list[tuple[str, ...]]


def sample_count(found: Evaluation) -> int | None:
    """Return how many samples were judged; None where none were."""
    if found.generation:
        return found.generation.drawing.samples
    if found.audit:
        return found.audit.copies.samples
    return found.usefulness.generated.pairs if found.usefulness else None


def level_rows(found: Fidelity) -> Rows:
    """Return how the codes of each level are used."""
    rows: Rows = [("level, 0 the finest", "codes", "in use", "perplexity")]
    rows += [
        (str(one.level), str(one.codebook_size), share(one.usage), f"{one.perplexity:.0f}")
        for one in found.levels
    ]
    return rows


def likeness_rows(found: Likeness) -> Rows:
    """Return every measure of samples beside the same between real patients."""
    rows: Rows = [
        ("measure", "samples [95 % by patient]", "real patients", "5 to 95 % of draws", "tokenizer alone")
    ]
    for kind, features in found.features.items():
        for field in fields(features.samples):
            one, alone = getattr(features.samples, field.name), getattr(features.tokenizer_alone, field.name)
            if isinstance(one, Beside):
                name = f"{kind}: {named(field.name)}"
                rows.append((name, *_beside(one), number(alone.generated)))
    for name, curves in (("power spectrum", found.spectrum), ("intensities", found.intensity)):
        rows.append((f"{name}: distance", *_beside(curves.distance), UNKNOWN))
    alike = found.diversity
    rows.append(
        (
            "MS-SSIM of pairs",
            estimate(alike.generated, alike.generated_interval),
            estimate(alike.real, alike.real_interval),
            UNKNOWN,
            UNKNOWN,
        )
    )
    return rows


def anatomy_rows(found: Likeness) -> Rows:
    """Return how many masks meet each rule; nothing without masks of a pelvis."""
    whole = found.anatomy
    if not whole:
        return []
    rates = {name: (*pair, whole.rules[name]) for name, pair in whole.by_rule.items()}
    rates["all of them"] = (whole.generated, whole.real, "every rule that has something to judge")
    rows: Rows = [("rule", "samples", "real patients", "what it asks")]
    rows += [(named(name), share(ours), share(theirs), asks) for name, (ours, theirs, asks) in rates.items()]
    return rows


def dice_rows(found: Usefulness) -> Rows:
    """Return what samples taught a segmenter, beside what the training set did."""
    rows: Rows = [("label", "taught by samples", "taught by the training set")]
    rows += [
        (label, found.generated.labels[label].in_words(), one.in_words())
        for label, one in found.training_set.labels.items()
    ]
    return [*rows, ("mean", number(found.generated.mean), number(found.training_set.mean))]


def gap_rows(found: Auditing) -> Rows:
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


def control_rows(found: Auditing) -> Rows:
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


def conventions(found: Fidelity | Likeness | Auditing | Usefulness) -> dict[str, str]:
    """Return what was measured, by name."""
    if isinstance(found, Fidelity):
        scores = {name: one.convention for name, one in found.scores.items()}
        return {"images": found.images, "bits_per_pixel": found.bits_per_pixel.convention} | scores
    if isinstance(found, Likeness):
        return dict(_likeness_conventions(found))
    if isinstance(found, Auditing):
        copies = found.copies
        return {
            "distance": copies.distance,
            "gap": copies.tests[0].convention,
            "share nearer": copies.nearer.convention,
            "membership AUC": found.membership.convention,
        }
    return {"Dice": found.convention}


def _likeness_conventions(found: Likeness) -> Iterator[tuple[str, str]]:
    for kind, features in found.features.items():
        yield kind, features.convention
        for field in fields(features.samples):
            one = getattr(features.samples, field.name)
            if isinstance(one, Beside):
                yield named(field.name), one.convention
    yield "power spectrum", found.spectrum.distance.convention
    yield "intensities", found.intensity.distance.convention
    yield "MS-SSIM of pairs", found.diversity.convention


def named(field: str) -> str:
    """Return the name of a measure as people write it.

    >>> named("frechet_distance")
    'Fréchet distance'
    """
    return field.replace("_", " ").replace("frechet", "Fréchet")


def _beside(one: Beside) -> tuple[str, str, str]:
    return estimate(one.generated, one.interval), number(one.real), ends(one.real_range)

"""What an evaluation says, in a few sentences: is it faithful, does it generate, does it copy, is it of use?

The rules are here and nowhere else, so that the page, the card and the comparison never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slicebook.evaluation import Evaluation
from slicebook.judging.generation import GenerationResult
from slicebook.judging.reconstruction import ReconstructionResult
from slicebook.reporting.wording import estimate

FEWEST = 6  # patients: fewer hardly know their own spread, so they decide nothing
COVERED = 0.8  # of the coverage that real patients have of each other
USEFUL = 0.9  # of what the training set teaches
LEARNT = 0.5  # Dice that the training set has to teach, for that to be a yardstick
WHO = {
    "train": "patients it was trained on",
    "validation": "patients that chose the checkpoint",
    "test": "patients never trained on",
}
PASSING = 0.9  # of the rate at which real masks pass the rules of anatomy

Verdict = Literal["yes", "partly", "no", "none found", "measured", "invalid", "not judged", "not asked"]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        question: As people ask it.
        verdict: `measured` where there is too little to judge the number by; `not judged` where it was asked
            for and could not be.
        finding: With its numbers.
        rule: What makes it a yes.
    """

    question: str
    verdict: Verdict
    finding: str
    rule: str


def answers(found: Evaluation) -> tuple[Answer, ...]:
    """Return the answers that an evaluation gives, in the order people ask."""
    return (_faithful(found), _generates(found), _copies(found), _useful(found))


def whose(found: Evaluation) -> str:
    """Return whose slices judge, in words."""
    model = found.provenance["model"] or found.provenance["prior"]
    if model["provenance"]["split_hash"] != found.provenance["data"]["split_hash"]:
        return "patients of another data set"
    return WHO[found.split]


def _faithful(found: Evaluation) -> Answer:
    question = "Is it faithful?"
    rule = (
        "Yes where its foreground SSIM is above JPEG 2000's at its bits, no where it is below, interval by "
        f"patient clear of 0; measured on fewer than {FEWEST} patients."
    )
    fidelity = found.fidelity
    if fidelity is None:
        return _unjudged(found, "fidelity", question, "Reconstruction was not judged.", rule)
    said = (
        f"SSIM of the foreground {fidelity.scores[fidelity.headline].in_words()} at "
        f"{fidelity.bits_per_pixel.mean_of_slices:.3f} bits a pixel, on {found.patients} {whose(found)}."
    )
    return Answer(question, *_beside_codec(fidelity, _decides(found, found.patients), said), rule)


def _unjudged(found: Evaluation, part: str, question: str, finding: str, rule: str) -> Answer:
    if part in found.left_out:
        return Answer(question, "not judged", f"{finding} Why: {found.left_out[part]}.", rule)
    return Answer(question, "not asked", finding, rule)


def _decides(found: Evaluation, patients: int) -> bool:
    """Return whether these patients can decide anything."""
    return found.split != "train" and patients >= FEWEST


def _beside_codec(fidelity: ReconstructionResult, decides: bool, said: str) -> tuple[Verdict, str]:
    codec = (fidelity.codecs or {}).get("jpeg2000")
    if codec is None:
        return "measured", f"{said} No codec was asked to do the same (--codecs)."
    gain = codec.advantage[fidelity.headline]
    said = f"{said} JPEG 2000 at these bits: {codec.scores[fidelity.headline].in_words()}."
    if gain.interval is None or not decides:
        return "measured", said
    low, high = gain.interval
    return "yes" if low > 0 else "no" if high < 0 else "partly", said


def _generates(found: Evaluation) -> Answer:
    question = "Does it generate?"
    rule = (
        "Yes where, on every kind of features, the kernel distance is no larger than the 95th percentile of "
        f"that between real patients, coverage is at least {COVERED:.0%} of theirs, and masks of a pelvis "
        f"pass the rules of anatomy at {PASSING:.0%} of the rate of real ones; partly where some of it "
        f"holds; measured on fewer than {FEWEST} patients."
    )
    likeness = found.generation
    if likeness is None:
        return _unjudged(found, "generation", question, "No sample was judged.", rule)
    held = _held(likeness)
    verdict: Verdict = "yes" if all(held) else "partly" if any(held) else "no"
    if not _decides(found, likeness.held_out_patients):
        verdict = "measured"
    parts = []
    for name, features in likeness.features.items():
        distance, coverage = features.samples.kernel_distance, features.samples.coverage
        text = f"On {name}, kernel distance {distance.generated:.3g} (real patients up to "
        text += f"{distance.real_range[1]:.3g})"
        if coverage is None:
            text += ", and too few patients for coverage"
        else:
            text += f" and coverage {coverage.generated:.2f} of {coverage.real:.2f}"
        parts.append(text)
    if likeness.anatomy:
        parts.append(
            f"Anatomy right in {likeness.anatomy.generated:.0%} of the masks, {likeness.anatomy.real:.0%} of "
            "real ones"
        )
    return Answer(question, verdict, f"{'. '.join(parts)}.", rule)


def _held(likeness: GenerationResult) -> list[bool]:
    held = []
    for features in likeness.features.values():
        held.append(features.samples.as_near_as_real)
        coverage = features.samples.coverage
        # Too few patients for coverage, too few for a yes.
        held.append(bool(coverage and coverage.share is not None and coverage.share >= COVERED))
    if likeness.anatomy and likeness.anatomy.ratio is not None:
        held.append(likeness.anatomy.ratio >= PASSING)
    return held


def _copies(found: Evaluation) -> Answer:
    question = "Does it copy patients?"
    rule = (
        "None found where the audit is valid, so would have seen copies in a twentieth of the samples, and "
        "neither of its two tests found any. That is no proof that there are none."
    )
    if found.audit is None:
        return _unjudged(found, "audit", question, "Samples were not searched for copies.", rule)
    copies, member = found.audit.copies, found.audit.membership
    verdict: Verdict = "yes" if copies.copies_found else "none found" if copies.valid else "invalid"
    said = copies.verdict
    if copies.valid:
        many, any_one = copies.tests
        said = (
            f"{many.beyond} of {copies.samples} samples beyond the gap that {many.expected:.1%} of real "
            f"slices exceed (copies from {many.needed}), {any_one.beyond} beyond what chance allows; "
            f"{copies.controls[-1].seen:.0%} of {copies.controls[-1].planted} planted copies seen."
        )
    said += " Likelihoods tell training slices from others with an AUC of "
    said += f"{estimate(member.auc, member.interval)}."
    return Answer(question, verdict, said, rule)


def _useful(found: Evaluation) -> Answer:
    question = "Is it of use?"
    rule = (
        f"Yes where a segmenter taught by samples alone reaches {USEFUL:.0%} of the Dice of one taught by "
        f"the training set, partly from half of that; measured where the latter is below {LEARNT}, or on "
        f"fewer than {FEWEST} patients."
    )
    useful = found.usefulness
    if useful is None:
        return _unjudged(found, "usefulness", question, "No segmenter was trained on samples.", rule)
    theirs = useful.training_set.mean
    if useful.ratio is None or useful.generated.mean is None or theirs is None:
        return Answer(question, "measured", "The training set itself taught nothing.", rule)
    verdict: Verdict = "yes" if useful.ratio >= USEFUL else "partly" if useful.ratio >= USEFUL / 2 else "no"
    if theirs < LEARNT or not _decides(found, found.patients):
        verdict = "measured"
    said = f"Dice {useful.generated.mean:.3f} on {whose(found)}, taught by samples alone; "
    said += f"{theirs:.3f} by the training set."
    return Answer(question, verdict, said, rule)

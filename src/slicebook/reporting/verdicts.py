"""The verdicts of an evaluation, on reconstruction, realism, copies of patients and downstream use.

The rules are defined here only, so that the page, the model card and the comparison agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slicebook.evaluation.generation import GenerationResult
from slicebook.evaluation.reconstruction import ReconstructionResult
from slicebook.evaluation.report import Evaluation
from slicebook.reporting.tables import estimate, number

MIN_PATIENTS = 6  # fewer cannot estimate their own spread, so their numbers are reported without a verdict
MAX_AUC_EXCESS = 0.1  # of a classifier that tells samples from real slices
MIN_COVERAGE = 0.8  # relative to the coverage between real patients
MIN_ANATOMY = 0.9  # relative to the rate at which real masks satisfy the anatomy rules
MIN_DICE_RATIO = 0.9  # relative to a segmenter trained on the training set
MIN_REFERENCE_DICE = 0.5  # of that segmenter, for it to be a reference
PATIENT_GROUPS = {
    "train": "training patients",
    "validation": "validation patients (used to select the checkpoint)",
    "test": "test patients (never used in training)",
}

Answer = Literal["yes", "partly", "no", "none found", "measured", "invalid", "skipped", "not requested"]


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes:
        question: As a reader asks it.
        answer: `measured` where there is too little data for a verdict; `skipped` if the part was
            requested and could not be evaluated; `not requested` if it was not requested.
        finding: The numbers behind the answer.
        rule: What a yes requires.
    """

    question: str
    answer: Answer
    finding: str
    rule: str


def verdicts(report: Evaluation) -> tuple[Verdict, ...]:
    """Return the four verdicts of an evaluation."""
    return (_accurate(report), _realistic(report), _copies(report), _useful(report))


def patient_group(report: Evaluation) -> str:
    """Return which patients the model was evaluated on, in words."""
    model = report.provenance["model"] or report.provenance["prior"]
    if model["provenance"]["split_hash"] != report.provenance["data"]["split_hash"]:
        return "patients of another data set"
    return PATIENT_GROUPS[report.split]


def _accurate(report: Evaluation) -> Verdict:
    question = "Are reconstructions accurate?"
    rule = (
        "Yes if the foreground SSIM is higher than that of JPEG 2000 at the same bits, no if it is lower, "
        "partly if the 95 % interval of the difference, by patient, contains 0. Only measured, without a "
        f"verdict, on fewer than {MIN_PATIENTS} patients."
    )
    reconstruction = report.reconstruction
    if reconstruction is None:
        return _missing(report, "reconstruction", question, "Reconstruction was not evaluated.", rule)
    finding = (
        f"Foreground SSIM {reconstruction.scores[reconstruction.headline].in_words()} at "
        f"{reconstruction.bits_per_pixel.mean_of_slices:.3f} bits per pixel, on {report.patients} "
        f"{patient_group(report)}."
    )
    answer, comparison = _compared_with_codec(reconstruction, _enough(report, report.patients))
    return Verdict(question, answer, f"{finding} {comparison}", rule)


def _missing(report: Evaluation, part: str, question: str, finding: str, rule: str) -> Verdict:
    if part in report.skipped:
        return Verdict(question, "skipped", f"{finding} Reason: {report.skipped[part]}.", rule)
    return Verdict(question, "not requested", finding, rule)


def _enough(report: Evaluation, patients: int) -> bool:
    """Return whether there are enough patients for a verdict, none of them trained on."""
    return report.split != "train" and patients >= MIN_PATIENTS


def _compared_with_codec(reconstruction: ReconstructionResult, enough: bool) -> tuple[Answer, str]:
    codec = (reconstruction.codecs or {}).get("jpeg2000")
    if codec is None:
        return "measured", "Not compared with codecs (--codecs)."
    finding = f"JPEG 2000 at the same bits: {codec.scores[reconstruction.headline].in_words()}."
    interval = codec.advantage[reconstruction.headline].interval
    if interval is None or not enough:
        return "measured", finding
    low, high = interval
    return "yes" if low > 0 else "no" if high < 0 else "partly", finding


def _realistic(report: Evaluation) -> Verdict:
    question = "Are samples realistic?"
    rule = (
        "Yes if all of these hold: for every kind of features, the kernel distance is at most the 95th "
        "percentile of the distances between groups of real patients; coverage is at least "
        f"{MIN_COVERAGE:.0%} of that of real patients; a classifier's AUC is at most {MAX_AUC_EXCESS:.2f} "
        "above that for real slices of other patients; masks of a pelvis satisfy the anatomy rules at least "
        f"{MIN_ANATOMY:.0%} as often as real masks. Partly if some hold. Only measured, without a verdict, "
        f"on fewer than {MIN_PATIENTS} patients."
    )
    generation = report.generation
    if generation is None:
        return _missing(report, "generation", question, "Samples were not evaluated.", rule)
    criteria = _generation_criteria(generation)
    answer: Answer = "yes" if all(criteria) else "partly" if any(criteria) else "no"
    if not _enough(report, generation.held_out_patients):
        answer = "measured"
    findings = []
    for name, features in generation.features.items():
        distance, coverage = features.samples.kernel_distance, features.samples.coverage
        finding = f"{name}: kernel distance {number(distance.generated)} (real patients up to "
        finding += f"{number(distance.real_range[1])})"
        if coverage is None:
            finding += ", too few patients for coverage"
        else:
            finding += f", coverage {coverage.generated:.2f} (real patients {coverage.real:.2f})"
        findings.append(finding)
    if generation.detection:
        aucs = [f"{name} {found.auc:.2f}" for name, found in generation.detection.items()]
        highest = max(found.reference for found in generation.detection.values())
        findings.append(
            f"Classifiers tell samples from real slices with an AUC of: {', '.join(aucs)} (other patients up "
            f"to {highest:.2f})"
        )
    if anatomy := generation.anatomy:
        findings.append(
            f"Anatomy rules satisfied by {anatomy.generated:.0%} of the masks ({anatomy.real:.0%} of real "
            "masks)"
        )
    return Verdict(question, answer, f"{'. '.join(findings)}.", rule)


def _generation_criteria(generation: GenerationResult) -> list[bool]:
    criteria = []
    for features in generation.features.values():
        criteria.append(features.samples.as_near_as_real)
        coverage = features.samples.coverage
        # Too few patients for coverage are too few for a yes.
        criteria.append(bool(coverage and coverage.share is not None and coverage.share >= MIN_COVERAGE))
    criteria += [
        detection.auc <= detection.reference + MAX_AUC_EXCESS for detection in generation.detection.values()
    ]
    if generation.anatomy and generation.anatomy.ratio is not None:
        criteria.append(generation.anatomy.ratio >= MIN_ANATOMY)
    return criteria


def _copies(report: Evaluation) -> Verdict:
    question = "Does it copy patients?"
    rule = (
        "None found if the audit is valid (it detects copies planted in 5 % of the samples) and neither of "
        "its two tests finds copies. This does not prove that there are none."
    )
    if report.memorization is None:
        return _missing(report, "memorization", question, "Samples were not searched for copies.", rule)
    copies, membership = report.memorization.copies, report.memorization.membership
    answer: Answer = "yes" if copies.copies_found else "none found" if copies.valid else "invalid"
    finding = copies.verdict
    if copies.valid:
        many, single = copies.tests
        finding = (
            f"{many.exceeding} of {copies.samples} samples exceed the gap that {many.expected:.1%} of real "
            f"slices exceed (copies from {many.needed}), {single.exceeding} exceed what chance allows; "
            f"{copies.controls[-1].detected:.0%} of {copies.controls[-1].planted} planted copies detected."
        )
    finding += f" Membership inference from likelihoods: AUC {estimate(membership.auc, membership.interval)}."
    return Verdict(question, answer, finding, rule)


def _useful(report: Evaluation) -> Verdict:
    question = "Are samples useful for training?"
    rule = (
        f"Yes if a segmenter trained on samples alone reaches {MIN_DICE_RATIO:.0%} of the Dice of one "
        f"trained on the training set, partly if it reaches {MIN_DICE_RATIO / 2:.0%}. Only measured, without "
        f"a verdict, if the latter has a Dice below {MIN_REFERENCE_DICE}, or on fewer than {MIN_PATIENTS} "
        "patients."
    )
    downstream = report.downstream
    if downstream is None:
        return _missing(report, "downstream", question, "No segmenter was trained on samples.", rule)
    ratio, dice, reference = downstream.ratio, downstream.generated.mean, downstream.training_set.mean
    if ratio is None or dice is None or reference is None:
        finding = "The segmenter trained on the training set has a Dice of 0: there is no reference."
        return Verdict(question, "measured", finding, rule)
    answer: Answer = "yes" if ratio >= MIN_DICE_RATIO else "partly" if ratio >= MIN_DICE_RATIO / 2 else "no"
    if reference < MIN_REFERENCE_DICE or not _enough(report, report.patients):
        answer = "measured"
    finding = f"Dice {dice:.3f} on {patient_group(report)} when trained on samples alone; {reference:.3f} "
    finding += "when trained on the training set."
    return Verdict(question, answer, finding, rule)

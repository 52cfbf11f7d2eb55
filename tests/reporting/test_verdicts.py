"""The answers: each rule is what it says, and what was not evaluated is never a yes."""

from typing import Any

import pytest

from slicebook.evaluation.report import PARTS, Evaluation, read_report
from slicebook.reporting.verdicts import verdicts

FAITHFUL, GENERATES, COPIES, USEFUL = range(4)
QUESTIONS = [
    "Are reconstructions accurate?",
    "Are samples realistic?",
    "Does it copy patients?",
    "Are samples useful for training?",
]


ENOUGH = {"patients": 12, "generation__held_out_patients": 12}
"""Patients to decide by: the tiny report has two, who decide nothing."""


def verdict(folder, which):
    return verdicts(read_report(folder))[which].answer


def beside(generated, real, high=None):
    """Return a change of one measure beside real patients."""

    def change(measure):
        return measure | {
            "generated": generated,
            "real": real,
            "real_range": [real, real if high is None else high],
        }

    return change


def covers(share):
    """Return a coverage where that of real patients is .5; None where too few patients have none."""
    if share is None:
        return None
    return {
        "convention": "c", "generated": share, "generated_range": [0, 1], "real": 0.5,
        "real_range": [0, 1], "interval": [0, 1],
    }  # fmt: skip


def test_four_questions_are_asked_in_the_order_people_ask(evaluated):
    answers = verdicts(read_report(evaluated))
    assert [answer.question for answer in answers] == QUESTIONS
    assert all(answer.finding and answer.rule for answer in answers)


@pytest.mark.parametrize(
    ("part", "which"), [("reconstruction", 0), ("generation", 1), ("memorization", 2), ("downstream", 3)]
)
def test_what_was_not_judged_has_no_answer(variant, part, which):
    answers = verdicts(read_report(variant("report", **{part: None})))
    assert [entry.answer == "not requested" for entry in answers] == [index == which for index in range(4)]


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [([0.01, 0.2], "yes"), ([-0.1, 0.1], "partly"), ([-0.2, -0.01], "no"), (None, "measured")],
)
def test_faithful_is_above_jpeg_2000_on_the_patients_at_hand(variant, interval, wanted):
    change = {"reconstruction__codecs__jpeg2000__advantage__ssim_foreground__interval": interval}
    assert verdict(variant("report", **ENOUGH, **change), FAITHFUL) == wanted


def test_without_a_codec_fidelity_is_a_number_and_no_verdict(variant):
    faithful = verdicts(read_report(variant("report", reconstruction__codecs=None)))[FAITHFUL]
    assert faithful.answer == "measured"
    assert "--codecs" in faithful.finding


@pytest.mark.parametrize(
    ("split", "words"),
    [("train", "training patients"), ("validation", "select the checkpoint"), ("test", "never")],
)
def test_whose_slices_they_are_is_said(variant, split, words):
    assert words in verdicts(read_report(variant("report", split=split)))[FAITHFUL].finding


KINDS = ("texture", "structure", "efficientnet-lite0")


@pytest.mark.parametrize(("auc", "wanted"), [(0.7, "yes"), (0.72, "partly")])
def test_it_generates_only_what_a_classifier_tells_no_better_than_other_patients(variant, auc, wanted):
    found = {"convention": "", "auc": auc, "interval": None, "tokenizer_only": 0.5, "reference": 0.61}
    change: dict[str, Any] = {"generation__detection": {"pixels": found | {"reference_interval": None}}}
    for kind in KINDS:
        change[f"generation__features__{kind}__samples__kernel_distance"] = beside(0.5, 0.5, 1.0)
        change[f"generation__features__{kind}__samples__coverage"] = covers(0.5)
    folder = variant("report", **ENOUGH, **change, generation__anatomy=None)
    assert verdict(folder, GENERATES) == wanted
    finding = verdicts(read_report(folder))[GENERATES].finding
    assert f"AUC of: pixels {auc:.2f} (other patients up to 0.61)" in finding


@pytest.mark.parametrize(
    ("distances", "ratio", "wanted"),
    [
        ((1.0, 1.0, 1.0), 0.9, "yes"),
        ((1.0, 1.0, 1.0), 0.89, "partly"),
        ((1.0, 1.0, 9.0), 0.9, "partly"),
        ((1.0, 9.0, 1.0), 0.9, "partly"),
        ((9.0, 9.0, 9.0), 0.5, "no"),
        ((9.0, 9.0, 9.0), None, "no"),
    ],
)
def test_it_generates_where_all_of_the_rule_holds(variant, distances, ratio, wanted):
    change = {
        f"generation__features__{kind}__samples__kernel_distance": beside(value, 0.5, 1.0)
        for kind, value in zip(KINDS, distances, strict=True)
    }
    change |= {
        f"generation__features__{kind}__samples__coverage": covers(0.1 if wanted == "no" else 0.5)
        for kind in KINDS
    }
    folder = variant("report", **ENOUGH, **change, generation__anatomy__ratio=ratio)
    assert verdict(folder, GENERATES) == wanted


@pytest.mark.parametrize(("coverage", "wanted"), [(0.40, "yes"), (0.39, "partly"), (None, "partly")])
def test_it_generates_only_where_it_covers(variant, coverage, wanted):
    change = {}
    for kind in KINDS:
        change[f"generation__features__{kind}__samples__kernel_distance"] = beside(0.5, 0.5, 1.0)
        change[f"generation__features__{kind}__samples__coverage"] = covers(coverage)
    folder = variant("report", **ENOUGH, **change, generation__anatomy=None)
    assert verdict(folder, GENERATES) == wanted


@pytest.mark.parametrize(
    ("valid", "copied", "wanted"),
    [(True, False, "none found"), (True, True, "yes"), (False, True, "yes"), (False, False, "invalid")],
)
def test_finding_no_copies_counts_only_where_planted_ones_were_found(variant, valid, copied, wanted):
    change = {"memorization__copies__valid": valid, "memorization__copies__copies_found": copied}
    assert verdict(variant("report", **change), COPIES) == wanted


def test_a_few_samples_beyond_are_not_called_copies(variant):
    def beyond(tests):
        return [tests[0] | {"exceeding": 4, "needed": 5}, tests[1] | {"exceeding": 0}]

    change = {"memorization__copies__valid": True, "memorization__copies__copies_found": False}
    copies = verdicts(read_report(variant("report", **change, memorization__copies__tests=beyond)))[COPIES]
    assert copies.answer == "none found"
    assert "4 of 24 samples exceed the gap" in copies.finding
    assert "copied" not in copies.finding


@pytest.mark.parametrize(
    ("ratio", "taught", "wanted"),
    [
        (0.9, 0.5, "yes"),
        (0.89, 0.5, "partly"),
        (0.44, 0.5, "no"),
        (None, 0.5, "measured"),
        (1.0, 0.02, "measured"),
    ],
)
def test_useful_is_nine_tenths_of_what_patients_teach(variant, ratio, taught, wanted):
    change = {
        "downstream__ratio": ratio,
        "downstream__generated__mean": 0.5,
        "downstream__training_set__mean": taught,
    }
    assert verdict(variant("report", **ENOUGH, **change), USEFUL) == wanted


@pytest.mark.parametrize(("patients", "wanted"), [(5, "measured"), (6, "yes")])
def test_few_patients_decide_nothing(variant, patients, wanted):
    change = {
        "patients": patients,
        "generation__held_out_patients": patients,
        "generation__anatomy": None,
        "reconstruction__codecs__jpeg2000__advantage__ssim_foreground__interval": [0.1, 0.2],
        "downstream__ratio": 1.0,
        "downstream__generated__mean": 0.9,
        "downstream__training_set__mean": 0.9,
    }
    for kind in KINDS:
        change[f"generation__features__{kind}__samples__kernel_distance"] = beside(0.5, 0.5, 1.0)
        change[f"generation__features__{kind}__samples__coverage"] = covers(0.5)
    folder = variant("report", **change)
    assert [verdict(folder, which) for which in (FAITHFUL, GENERATES, USEFUL)] == [wanted] * 3


@pytest.mark.parametrize("which", range(4))
def test_what_was_asked_for_and_could_not_be_judged_says_why(variant, which):
    name = PARTS[which]
    missing = verdicts(read_report(variant("report", **{name: None, "skipped": {name: "too few"}})))[which]
    assert missing.answer == "skipped"
    assert "Reason: too few." in missing.finding


def test_an_evaluation_survives_its_own_json(evaluated):
    report = read_report(evaluated)
    assert Evaluation.model_validate_json(report.model_dump_json()) == report


def test_patients_it_was_trained_on_make_nothing_faithful(variant):
    change = {"reconstruction__codecs__jpeg2000__advantage__ssim_foreground__interval": [0.1, 0.2]}
    assert verdict(variant("report", **ENOUGH, **change, split="train"), FAITHFUL) == "measured"


def test_patients_it_was_trained_on_judge_no_samples(variant):
    folder = variant("report", **ENOUGH, split="train")
    assert [verdict(folder, which) for which in (GENERATES, USEFUL)] == ["measured"] * 2


def test_patients_of_another_data_set_are_called_that(variant):
    folder = variant("report", provenance__model__provenance__split_hash="another")
    assert "patients of another data set" in verdicts(read_report(folder))[FAITHFUL].finding

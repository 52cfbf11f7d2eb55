"""The model card of an evaluation (Mitchell et al. 2019), from its report.json alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from slicebook.evaluation.report import PARTS, Evaluation, read_report
from slicebook.reporting import markdown, tables
from slicebook.reporting.verdicts import MIN_PATIENTS, patient_group, verdicts

CARD_NAME = "MODEL_CARD.md"
CHANCE_AUC = 0.5
MISSING = ("not requested", "skipped")
REASONS = {
    "not requested": "Not evaluated.",
    "skipped": "Could not be evaluated.",
    "invalid": "The audit was not valid, so there is no verdict.",
    "measured": "Measured; too little data for a verdict.",
}


class _Markdown(str):
    """Text that is Markdown already and is not escaped."""

    __slots__ = ()


def write_card(report: str | Path, out: str | Path | None = None) -> Path:
    """Write the model card of an evaluation, and return its path.

    Args:
        report: The folder that `slicebook evaluate` wrote, or its report.json.
        out: The file; MODEL_CARD.md in that folder by default.

    Raises:
        DataError: There is no report, or it is of another version.
        ConfigError: The file exists and was not written by `slicebook card`.
    """
    report = Path(report)
    text = model_card(read_report(report))
    path = Path(out) if out else (report if report.is_dir() else report.parent) / CARD_NAME
    markdown.write(path, text, "card")
    return path


def model_card(report: Evaluation) -> str:
    """Return the model card of an evaluation as Markdown.

    It contains no file, folder or patient names, nor error messages, which may contain some.
    """
    model = report.provenance["model"] or report.provenance["prior"]
    answers = verdicts(report)
    verdict_rows: tables.Rows = [("question", "answer", "finding")]
    verdict_rows += [
        (
            verdict.question,
            verdict.answer,
            REASONS[verdict.answer] if verdict.answer in MISSING else verdict.finding,
        )
        for verdict in answers
    ]
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, _Markdown) else markdown.clean(value),
    )  # fmt: skip
    environment.globals["tables"] = tables
    environment.globals["table"] = lambda rows: _Markdown(markdown.table(rows))
    template = files("slicebook.reporting") / "templates" / "model_card.md.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        report=report,
        provenance=report.provenance,
        model=model,
        same_data=model["provenance"]["split_hash"] == report.provenance["data"]["split_hash"],
        verdicts=answers,
        verdict_rows=verdict_rows,
        copies=answers[2].answer,
        patients=patient_group(report),
        reasons=REASONS,
        membership=_membership(report),
        unlearned=_unlearned(report),
        command=_command(report),
    )


def _membership(report: Evaluation) -> str:
    """Return whether likelihoods reveal training patients: yes, no, unsure, or empty without an audit."""
    if not report.memorization:
        return ""
    membership = report.memorization.membership
    fewest = min(membership.training_patients, membership.held_out_patients)
    if membership.interval is None or fewest < MIN_PATIENTS:
        return "unsure"
    return "yes" if membership.interval[0] > CHANCE_AUC else "no"


def _unlearned(report: Evaluation) -> str:
    """Return the labels for which the segmenter trained on the training set has a Dice of 0."""
    labels = report.downstream.training_set.labels if report.downstream else {}
    return ", ".join(label for label, dice in labels.items() if dice.mean_of_patients == 0)


def _command(report: Evaluation) -> str:
    """Return the command that repeats this evaluation."""
    words = ["slicebook evaluate MODEL DATA --out REPORT", f"--split {report.split}"]
    words.append(f"--seed {report.provenance['seed']}")
    if sampling := report.sampling:
        words.append(f"-n {sampling.samples}")
        words += [f"--{name.replace('_', '-')} {value}" for name, value in sampling.settings.items()]
    parts = [part for part in PARTS if getattr(report, part)]
    if len(parts) < len(PARTS):
        words.append(f"--parts {','.join(parts)}")
    if report.reconstruction:
        words.append("--codecs" if report.reconstruction.codecs else "--no-codecs")
    return " ".join(words)

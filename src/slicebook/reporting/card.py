"""The model card of an evaluation (Mitchell et al. 2019), from its report.json alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from slicebook.evaluation import PARTS, Evaluation, read_report
from slicebook.reporting import markdown, provenance, tables
from slicebook.reporting.answers import FEWEST, answers, whose
from slicebook.reporting.wording import ends, estimate, number, share

CARD_NAME = "MODEL_CARD.md"
CHANCE = 0.5  # AUC of likelihoods that tell nothing
UNJUDGED = ("not asked", "not judged")
WHY = {
    "not asked": "Not asked.",
    "not judged": "Could not be judged.",
    "invalid": "The test was not valid, so there is no answer.",
    "measured": "Measured, with too little to judge the number by.",
}

Rows = tables.Rows


class _Ready(str):
    """Markdown already: not to be cleaned."""

    __slots__ = ()


def write_card(report: str | Path, out: str | Path | None = None) -> Path:
    """Write the card of an evaluation, and return where it is.

    Args:
        report: The folder that `slicebook evaluate` wrote, or its report.json.
        out: The file; MODEL_CARD.md in that folder by default.

    Raises:
        DataError: There is no report, or it is of another version.
        ConfigError: There is a file that `slicebook card` did not write.
    """
    report = Path(report)
    text = card(read_report(report))
    path = Path(out) if out else (report if report.is_dir() else report.parent) / CARD_NAME
    markdown.write(path, text, "card")
    return path


def card(found: Evaluation) -> str:
    """Return the card of an evaluation as Markdown.

    It names no file, folder or patient, nor repeats what errors said: these may name some.
    """
    made = found.provenance
    model = made["model"] or made["prior"]
    said = answers(found)
    answer_rows: Rows = [("question", "answer", "what was found")]
    answer_rows += [
        (one.question, one.verdict, WHY[one.verdict] if one.verdict in UNJUDGED else one.finding)
        for one in said
    ]
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, _Ready) else markdown.clean(value),
    )  # fmt: skip
    environment.globals |= {"number": number, "share": share, "ends": ends, "estimate": estimate}
    environment.globals |= {"tables": tables, "provenance": provenance}
    environment.globals["table"] = lambda rows: _Ready(markdown.table(rows))
    template = files("slicebook.reporting") / "templates" / "card.md.j2"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        found=found,
        made=made,
        model=model,
        same_data=model["provenance"]["split_hash"] == made["data"]["split_hash"],
        answers=said,
        answer_rows=answer_rows,
        copying=said[2].verdict,
        who=whose(found),
        why=WHY,
        tells=_tells(found),
        untaught=_untaught(found),
        command=_command(found),
    )


def _tells(found: Evaluation) -> str:
    """Say whether likelihoods tell training slices from others: yes, no, unsure, or nothing."""
    if not found.audit:
        return ""
    member = found.audit.membership
    if member.interval is None or min(member.training_patients, member.held_out_patients) < FEWEST:
        return "unsure"
    return "yes" if member.interval[0] > CHANCE else "no"


def _untaught(found: Evaluation) -> str:
    """Name the labels that the training set itself taught a segmenter nothing of."""
    taught = found.usefulness.training_set.labels if found.usefulness else {}
    return ", ".join(label for label, one in taught.items() if one.mean_of_patients == 0)


def _command(found: Evaluation) -> str:
    """Return the command that judges so again."""
    words = ["slicebook evaluate MODEL DATA --out REPORT", f"--split {found.split}"]
    words.append(f"--seed {found.provenance['seed']}")
    if drawing := found.drawing:
        words.append(f"-n {drawing.samples}")
        words += [f"--{name.replace('_', '-')} {value}" for name, value in drawing.settings.items()]
        words.append("--grain" if drawing.grain else "--no-grain")
    judged = [part for part in PARTS if getattr(found, part)]
    if len(judged) < len(PARTS):
        words += [f"--only {part}" for part in judged]
    if found.fidelity:
        words.append("--codecs" if found.fidelity.codecs else "--no-codecs")
    return " ".join(words)

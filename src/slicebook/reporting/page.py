"""An evaluation as one page that needs nothing else: no script, no request, all pictures inside.

The page is drawn from `report.json` and the pictures beside it, so that it can be drawn again without the
model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from pydantic import ValidationError

from slicebook.errors import DataError
from slicebook.evaluate import REPORT_NAME, Evaluation
from slicebook.judging.auditing import Auditing
from slicebook.judging.fidelity import Fidelity
from slicebook.judging.likeness import Likeness
from slicebook.judging.usefulness import Usefulness
from slicebook.metrics.appearance import Curves
from slicebook.metrics.beside import Beside
from slicebook.reporting import charts
from slicebook.reporting.answers import Answer, answers
from slicebook.text import replace_text, to_rows

PAGE_NAME = "report.html"
TONES: Mapping[tuple[str, str], str] = {
    ("Does it copy patients?", "yes"): "bad",
    ("Does it copy patients?", "no"): "good",
}
USUAL_TONES = {"yes": "good", "partly": "fair", "no": "bad", "invalid": "bad"}

Block = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    lead: str
    blocks: list[Block]


def read_report(folder: str | Path) -> Evaluation:
    """Read what `slicebook evaluate` wrote.

    Args:
        folder: Its folder, or the file itself.

    Raises:
        DataError: There is no report, or it is of another version.
    """
    path = Path(folder)
    path = path / REPORT_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{path}: there is no report; write one first: slicebook evaluate MODEL DATA --out DIR"
        )
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(
            f"{path}: is no report of this version of Slicebook ({error.error_count()} faults); evaluate "
            "again"
        ) from error


def write_page(folder: str | Path) -> Path:
    """Draw the page of an evaluation beside its report.json, and return where it is.

    Raises:
        DataError: There is no report, or it is of another version.
    """
    folder = Path(folder)
    found = read_report(folder)
    said = answers(found)
    model = found.provenance["model"]
    template = files("slicebook.reporting") / "templates"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string((template / "report.html.j2").read_text(encoding="utf-8")).render(
        style=(template / "report.css").read_text(encoding="utf-8"),
        title=f"{model['recipe']['name']} on {found.patients} {found.split} patients",
        subtitle=f"{found.slices} slices. Codebook {model['codebook_hash'][:12]}, split "
        f"{found.provenance['data']['split_hash'][:12]}, commit "
        f"{(found.provenance['commit'] or 'none')[:12]}, seed {found.provenance['seed']}.",
        versions=found.provenance["versions"],
        warnings=found.warnings,
        answers=[asdict(one) | {"tone": _tone(one)} for one in said],
        sections=[section for section in _sections(found, folder) if section.blocks],
    )
    path = folder / PAGE_NAME
    replace_text(path, page)
    return path


def _tone(answer: Answer) -> str:
    return TONES.get((answer.question, answer.verdict)) or USUAL_TONES.get(answer.verdict, "none")


def _sections(found: Evaluation, folder: Path) -> Iterator[Section]:
    if found.fidelity:
        yield _fidelity(found.fidelity, folder)
    if found.generation:
        yield _generation(found.generation, folder)
    if found.audit:
        yield _audit(found.audit, folder)
    if found.usefulness:
        yield _usefulness(found.usefulness)
    yield Section(
        "provenance",
        "Where it comes from",
        "What it takes to get these numbers again.",
        [_terms("Settings, data, versions, machine", list(to_rows(found.provenance)))],
    )


def _fidelity(found: Fidelity, folder: Path) -> Section:
    codec_titles = [codec.title for codec in (found.codecs or {}).values()]
    pictures = (
        ("pairs.png", "Real, rebuilt, and the difference, from the worst slice to the best."),
        ("levels.png", "What each level adds, coarsest first."),
        ("worst.png", "The worst slices, one a patient first."),
    )
    uses = [
        ("level", "codes", "in use", "perplexity"),
        *(
            (str(one.level), str(one.codebook_size), f"{one.usage:.0%}", f"{one.perplexity:.0f}")
            for one in found.levels
        ),
    ]
    return Section(
        "fidelity",
        "Is it faithful?",
        f"Slices rebuilt from their tokens{', beside ' * bool(codec_titles)}{' and '.join(codec_titles)}. "
        f"{found.averaging}",
        [
            _table("Scores by patient, with their 95 % interval", found.table()),
            *_pictures(folder, pictures),
            _table("How the codes are used; level 0 is the finest", uses),
            _terms(
                "What each score is",
                [("images", found.images)]
                + [(name, one.convention) for name, one in found.scores.items()]
                + [("bits_per_pixel", found.bits_per_pixel.convention)],
            ),
        ],
    )


def _generation(found: Likeness, folder: Path) -> Section:
    rows: list[Sequence[str]] = [
        ("measure", "samples", "95 % by patient", "real patients", "5–95 % of draws", "tokenizer alone")
    ]
    terms = []
    for name, features in found.features.items():
        terms.append((name, features.convention))
        for field in fields(features.samples):
            one, alone = getattr(features.samples, field.name), getattr(features.tokenizer_alone, field.name)
            if isinstance(one, Beside):
                rows.append(
                    (f"{name}: {field.name.replace('_', ' ')}", *_beside(one), _number(alone.generated))
                )
                terms.append((field.name, one.convention))
    for name, curves in (("spectrum", found.spectrum), ("intensity", found.intensity)):
        rows.append((name, *_beside(curves.distance), ""))
        terms.append((name, curves.distance.convention))
    diversity = found.diversity
    rows.append(
        (
            "MS-SSIM of pairs",
            _number(diversity.generated),
            _interval(diversity.generated_interval),
            _number(diversity.real),
            _interval(diversity.real_interval),
            "",
        )
    )
    terms.append(("MS-SSIM of pairs", diversity.convention))
    blocks = [
        *_pictures(
            folder,
            (
                (
                    "samples.png",
                    f"{found.drawing.samples} were drawn; these are the first, none of them picked.",
                ),
                ("real.png", "Real slices of held-out patients, chosen at random."),
                ("samples-masks.png", "The same samples with their masks."),
                ("real-masks.png", "The same real slices with theirs."),
            ),
        ),
        _table("Samples beside real patients, at equal numbers of slices", rows),
        _curves(
            found.spectrum, "cycles a pixel", "power in dB", "Power spectra of samples and of real slices"
        ),
        _curves(found.intensity, "intensity", "share of pixels", "Intensities of samples and of real slices"),
    ]
    if found.anatomy:
        rules = [("rule", "samples", "real", "what it asks")]
        for rule, (ours, theirs) in found.anatomy.by_rule.items():
            rules.append((rule.replace("_", " "), _share(ours), _share(theirs), found.anatomy.rules[rule]))
        blocks.append(_table("Masks that meet the rules of anatomy", rules))
    blocks.append(_terms("What each measure is", list(dict(terms).items())))
    return Section(
        "generation",
        "Does it generate?",
        f"{found.drawing.samples} samples of {found.drawing.rows}×{found.drawing.columns} pixels beside "
        f"{found.held_out_slices} slices of {found.held_out_patients} held-out patients. Each measure stands "
        "beside the same between two groups of real patients who share nobody.",
        blocks,
    )


def _audit(found: Auditing, folder: Path) -> Section:
    copies = found.copies
    tests = [("test", "needed", "samples beyond")]
    tests += [
        (f"over {one.times_farther:.2f} times nearer to one patient", str(one.needed), str(one.beyond))
        for one in copies.tests
    ]
    controls = [("planted", "copies", "seen", "traced to their slice", "found")]
    controls += [
        (
            f"{one.share:.0%}",
            str(one.planted),
            f"{one.seen:.0%}",
            f"{one.traced:.0%}",
            "yes" if one.found else "no",
        )
        for one in copies.controls
    ]
    member = found.membership
    near = copies.nearer
    others = [
        ("measure", "value", "95 % by patient"),
        ("share nearer than the 1 % quantile", f"{near.share:.3f}", _interval(near.interval)),
        ("membership AUC", f"{member.auc:.3f}", _interval(member.interval)),
    ]
    return Section(
        "audit",
        "Does it copy patients?",
        f"{copies.samples} samples, each beside {found.training_slices} training slices of "
        f"{found.training_patients} patients. Baseline: {found.baseline}. {copies.verdict}",
        [
            _table("The two tests", tests),
            _table("The same tests with planted copies", controls),
            _table("Reported beside, not decided by", others),
            *_pictures(folder, (("closest.png", "The closest pairs."),)),
            _terms(
                "What these are",
                [
                    ("distance", copies.distance),
                    ("gap", copies.tests[0].convention),
                    ("share nearer", near.convention),
                    ("membership", member.convention),
                ],
            ),
        ],
    )


def _usefulness(found: Usefulness) -> Section:
    rows = [("label", "taught by samples", "taught by the training set")]
    rows += [
        (label, found.generated.labels[label].in_words(), one.in_words())
        for label, one in found.training_set.labels.items()
    ]
    rows.append(("mean", _number(found.generated.mean), _number(found.training_set.mean)))
    return Section(
        "usefulness",
        "Is it of use?",
        f"Dice on held-out patients of a segmenter taught by {found.generated.pairs} samples, and of one "
        f"taught by {found.training_set.pairs} training slices, {found.steps} steps each.",
        [_table("Dice by label", rows), _terms("What it is", [("Dice", found.convention)])],
    )


def _beside(one: Beside) -> tuple[str, str, str, str]:
    return (_number(one.generated), _interval(one.interval), _number(one.real), _interval(one.real_range))


def _curves(curves: Curves, x: str, y: str, what: str) -> Block:
    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(curves.at, values, strict=True))

    drawn = charts.lines(
        {
            "samples": points(curves.generated),
            "real": points(curves.real),
            "real patients, 5 %": points(curves.real_low),
            "real patients, 95 %": points(curves.real_high),
        },
        x=x,
        y=y,
        what=what,
    )
    return {"kind": "chart", "svg": drawn, "caption": f"{what}. {curves.distance.convention}"}


def _pictures(folder: Path, wanted: Sequence[tuple[str, str]]) -> list[Block]:
    found = []
    for name, caption in wanted:
        if (folder / name).is_file():
            content = base64.b64encode((folder / name).read_bytes()).decode()
            found.append(
                {
                    "kind": "picture",
                    "source": f"data:image/png;base64,{content}",
                    "alt": caption,
                    "caption": caption,
                    "width": "whole",
                }
            )
    return found


def _table(caption: str, rows: Sequence[Sequence[str]]) -> Block:
    return {"kind": "table", "caption": caption, "rows": rows}


def _terms(caption: str, rows: Sequence[tuple[str, str]]) -> Block:
    return {"kind": "terms", "caption": caption, "rows": rows}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}"

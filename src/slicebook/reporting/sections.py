"""The sections of the page, as tables, pictures, charts and terms; how they look is the template's."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slicebook.evaluate import Evaluation
from slicebook.judging.auditing import Auditing
from slicebook.judging.fidelity import Fidelity
from slicebook.judging.history import History
from slicebook.judging.likeness import Drawing, Likeness
from slicebook.judging.rate_distortion import RateDistortion
from slicebook.judging.usefulness import Usefulness
from slicebook.metrics.appearance import Curves
from slicebook.metrics.reconstruction import HEADLINE
from slicebook.reporting import charts
from slicebook.text import to_rows

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "tokenizer": "tokenizer",
        "masks": "tokenizer of masks",
        "prior": "prior",
        "decoder": "decoder of generation",
    }
)

Block = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Where links lead to.
        title: Its heading.
        lead: What it shows, in a few sentences.
        blocks: What the template draws, each by its `kind`: picture, chart, table or terms.
    """

    name: str
    title: str
    lead: str
    blocks: list[Block]


def sections(found: Evaluation, folder: Path) -> Iterator[Section]:
    """Yield the sections that an evaluation has something for, with the pictures that lie in its folder."""
    if found.fidelity:
        yield _fidelity(found, found.fidelity, folder)
    if found.generation and found.drawing:
        yield _generation(found.drawing, found.generation, folder)
    if found.audit:
        yield _audit(found.audit, folder)
    if found.usefulness:
        yield _usefulness(found.usefulness)
    if found.left_out:
        yield Section(
            "left-out",
            "What could not be judged",
            "The data were too few for it.",
            [_table("Why", [("part", "reason"), *found.left_out.items()])],
        )
    if found.training:
        yield Section(
            "training",
            "How it was trained",
            "The curves that each training left. They say nothing of patients never seen.",
            [_history(name, one) for name, one in found.training.items()],
        )
    yield Section(
        "provenance",
        "Where it comes from",
        "What it takes to get these numbers again.",
        [_terms("Settings, data, versions, machine", list(to_rows(found.provenance)))],
    )


def _fidelity(whole: Evaluation, found: Fidelity, folder: Path) -> Section:
    codec_titles = [codec.title for codec in (found.codecs or {}).values()]
    pictures = (
        ("pairs.png", "Real, rebuilt, and the difference, from the worst slice to the best."),
        ("levels.png", "What each level adds, coarsest first."),
        ("worst.png", "The worst slices, one a patient first."),
    )
    coded = []
    if whole.audit:
        bits = f"{whole.audit.coded.mean_of_slices:.3f}"
        coded.append(("bits_per_pixel, coded by the prior, mask included", bits, *["–"] * len(codec_titles)))
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
            _table("Scores by patient, with their 95 % interval", [*found.table(), *coded]),
            *_pictures(folder, pictures),
            *_rate_distortion(found.rate_distortion),
            _usage(found),
            _table("How the codes are used; level 0 is the finest", uses),
            _terms(
                "What each score is",
                [("images", found.images)]
                + [(name, one.convention) for name, one in found.scores.items()]
                + [("bits_per_pixel", found.bits_per_pixel.convention)]
                + ([("coded by the prior", whole.audit.coded.convention)] if whole.audit else []),
            ),
        ],
    )


def _generation(drawing: Drawing, found: Likeness, folder: Path) -> Section:
    rows: list[Sequence[str]] = [
        ("measure", "samples", "95 % by patient", "real patients", "5–95 % of draws", "tokenizer alone")
    ]
    rows += [
        (
            f"{one.features}: {one.measure}" if one.features else one.measure,
            _number(one.generated),
            _interval(one.interval),
            _number(one.real),
            _interval(one.real_range),
            _number(one.tokenizer_alone),
        )
        for one in found.measures()
    ]
    terms = {name: features.convention for name, features in found.features.items()}
    terms |= {one.measure: one.convention for one in found.measures()}
    blocks = [
        *_pictures(
            folder,
            (
                (
                    "samples.png",
                    f"{drawing.samples} were drawn; these are the first, none of them picked.",
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
    blocks.append(_terms("What each measure is", list(terms.items())))
    return Section(
        "generation",
        "Does it generate?",
        f"{drawing.samples} samples of {drawing.rows}×{drawing.columns} pixels beside "
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
    searches: list[Sequence[str]] = [
        ("search", "many: beyond of needed", "any: beyond of needed", "planted seen", "share nearer")
    ]
    for name, one in {"correlation of images": copies, **found.in_features}.items():
        counts = [f"{test.beyond} of {test.needed}" for test in one.tests]
        searches.append((name, *counts, f"{one.controls[-1].seen:.0%}", f"{one.nearer.share:.3f}"))
    unsearched = ""
    if found.of_other_sizes:
        unsearched = f"; {found.of_other_sizes} of other sizes cannot be compared with them"
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
        f"{found.training_patients} patients{unsearched}. Baseline: {found.baseline}. {copies.verdict}",
        [
            _table("The two tests", tests),
            _table("The same tests with planted copies", controls),
            _table("The same search among features, reported beside", searches),
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


def _rate_distortion(found: RateDistortion) -> list[Block]:
    """Return a chart of the foreground's SSIM and one of PSNR, over bits."""
    blocks = []
    for name, what in ((HEADLINE, "SSIM of the foreground"), ("psnr_whole", "PSNR in dB")):
        series = {
            title: [
                (point.bits_per_pixel, value)
                for point in points
                if (value := point.scores[name]) is not None and point.bits_per_pixel > 0
            ]
            for title, points in found.curves.items()
        }
        kept = {title: points for title, points in series.items() if points}
        if kept:
            drawn = charts.lines(
                kept, x="bits a pixel", y=what, what=f"{what} over bits", log_x=True, marks=True
            )
            blocks.append(_chart(drawn, f"{what} over bits, {found.slices} slices. {found.convention}."))
    return blocks


def _usage(found: Fidelity) -> Block:
    drawn = charts.bars(
        {f"level {one.level}": one.shares for one in found.levels},
        x="codes, the most used first",
        y="use, 1 were all alike",
        what="How the codes of each level are used",
    )
    return _chart(
        drawn,
        "How often the codes of each level are used by these slices, over what each would be were all used "
        "alike: a level bar at 1 is an even book, a steep one leans on few codes.",
    )


def _history(name: str, found: History) -> Block:
    drawn = charts.lines(
        {column.replace("_", " "): [(float(step), value) for step, value in points]
         for column, points in found.curves.items()},
        x="step", y=", ".join(sorted({column.split("_", 1)[1].replace("_", " ") for column in found.curves})),
        what=f"Training of the {MODELS[name]}",
    )  # fmt: skip
    minutes = found.seconds / 60
    return _chart(drawn, f"The {MODELS[name]}, trained for {minutes:.3g} minutes: {', '.join(found.curves)}.")


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
    return _chart(drawn, f"{what}. {curves.distance.convention}")


def _chart(drawn: str, caption: str) -> Block:
    return {"kind": "chart", "svg": drawn, "caption": caption}


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

"""The sections of the page, as tables, pictures, charts and terms; how they look is the template's."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slicebook.evaluation import Evaluation, History
from slicebook.judging.downstream import DownstreamResult
from slicebook.judging.generation import GenerationResult, SamplingInfo
from slicebook.judging.memorization import MemorizationResult
from slicebook.judging.reconstruction import RateDistortion, ReconstructionResult
from slicebook.metrics.image_quality import HEADLINE
from slicebook.metrics.spectra import Curves
from slicebook.reporting import charts, tables
from slicebook.reporting.answers import whose
from slicebook.reporting.wording import duration, estimate, number
from slicebook.text import to_rows

REBUILT = (
    ("pairs.png", "Real, rebuilt, and the difference, from the worst slice to the best."),
    ("levels.png", "What each level adds, coarsest first."),
    ("worst.png", "The worst slices, one a patient first."),
)
DRAWN = (
    ("samples.png", "The first of the samples, none of them picked."),
    ("real.png", "Real slices, chosen at random."),
    ("samples-masks.png", "The same samples with their masks."),
    ("real-masks.png", "The same real slices with theirs."),
)
CLOSEST = (("closest.png", "The closest pairs."),)
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
        yield _fidelity(found.fidelity, folder)
    if found.generation and found.drawing:
        yield _generation(found.drawing, found.generation, whose(found), folder)
    if found.audit:
        yield _audit(found.audit, folder, alone=found.generation is None)
    if found.usefulness:
        yield _usefulness(found.usefulness, whose(found))
    if found.left_out:
        yield Section(
            "left-out",
            "What could not be judged",
            "Left out, and why.",
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
        [_terms("Settings, data, versions, machine", dict(to_rows(found.provenance)))],
    )


def _fidelity(found: ReconstructionResult, folder: Path) -> Section:
    codec_titles = [codec.title for codec in (found.codecs or {}).values()]
    return Section(
        "fidelity",
        "Is it faithful?",
        f"Slices rebuilt from their tokens{', beside ' * bool(codec_titles)}{' and '.join(codec_titles)}. "
        f"{found.averaging}",
        [
            _table("Scores by patient, with their 95 % interval", found.table()),
            *_pictures(folder, REBUILT),
            *_rate_distortion(found.rate_distortion),
            _usage(found),
            _table("How the codes are used", tables.level_rows(found)),
            _terms("What each score is", tables.conventions(found)),
        ],
    )


def _generation(drawing: SamplingInfo, found: GenerationResult, who: str, folder: Path) -> Section:
    anatomy = tables.anatomy_rows(found)
    return Section(
        "generation",
        "Does it generate?",
        f"{drawing.samples} samples of {drawing.rows}×{drawing.columns} pixels beside "
        f"{found.held_out_slices} slices of {found.held_out_patients} {who}. Each measure stands beside the "
        "same between two groups of these who share nobody. “Tokenizer alone”: one group drawn anew from its "
        "own tokens, beside the other. Intervals are by patient; that of MS-SSIM of samples is by sample.",
        [
            *_pictures(folder, DRAWN),
            _table("Samples beside real patients, at equal numbers of slices", tables.likeness_rows(found)),
            _curves(
                found.spectrum, "cycles a pixel", "power in dB", "Power spectra of samples and of real slices"
            ),
            _curves(
                found.intensity,
                "intensity",
                "share of pixels",
                "Intensities of samples and of real slices",
            ),
            *([_table("Masks that meet the rules of anatomy", anatomy)] if anatomy else []),
            _terms("What each measure is", tables.conventions(found)),
        ],
    )


def _audit(found: MemorizationResult, folder: Path, *, alone: bool) -> Section:
    copies, member, near = found.copies, found.membership, found.copies.nearer
    searched = f"{found.training_slices} training slices of {found.training_patients} patients"
    if found.of_other_sizes:
        searched += f"; {found.of_other_sizes} of other sizes cannot be compared with them"
    others: tables.Rows = [
        ("measure", "value [95 % by patient]"),
        ("share nearer than the 1 % quantile of held-out slices", estimate(near.share, near.interval)),
        ("membership AUC", estimate(member.auc, member.interval)),
        ("bits per pixel of held-out slices by the prior", number(found.coded.mean_of_slices)),
    ]
    return Section(
        "audit",
        "Does it copy patients?",
        f"{copies.samples} samples, each beside {searched}. Baseline: {found.baseline}. {copies.verdict}",
        [
            _table("The two tests", tables.gap_rows(found)),
            _table("The same tests with planted copies", tables.control_rows(found)),
            _table("Reported beside, not decided by", others),
            *_pictures(folder, CLOSEST if not alone else (*CLOSEST, DRAWN[0])),
            _terms("What these are", tables.conventions(found)),
        ],
    )


def _usefulness(found: DownstreamResult, who: str) -> Section:
    return Section(
        "usefulness",
        "Is it of use?",
        f"Dice on {who} of a segmenter taught by {found.generated.pairs} samples, and of one "
        f"taught by {found.training_set.pairs} training slices, {found.steps} steps each.",
        [
            _table("Dice by label", tables.dice_rows(found)),
            _terms("What it is", tables.conventions(found)),
        ],
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


def _usage(found: ReconstructionResult) -> Block:
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
    return _chart(
        drawn, f"The {MODELS[name]}, trained for {duration(found.seconds)}: {', '.join(found.curves)}."
    )


def _curves(curves: Curves, x: str, y: str, what: str) -> Block:
    """Return a chart of samples over the range of real patients."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(curves.at, values, strict=True))

    drawn = charts.lines(
        {"samples": points(curves.generated), "real": points(curves.real)},
        x=x,
        y=y,
        what=what,
        band=("real patients, 5 to 95 %", points(curves.real_low), points(curves.real_high)),
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
                }
            )
    return found


def _table(caption: str, rows: Sequence[Sequence[str]]) -> Block:
    return {"kind": "table", "caption": caption, "rows": rows}


def _terms(caption: str, terms: Mapping[str, str]) -> Block:
    return {"kind": "terms", "caption": caption, "rows": list(terms.items())}

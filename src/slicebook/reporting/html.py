"""An evaluation as one HTML file without scripts or requests, its figures inside.

The page is made from `report.json` and the PNG files beside it, so that it can be made again without the
model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined

from slicebook.evaluation.downstream import DownstreamResult
from slicebook.evaluation.generation import GenerationResult, SamplingInfo
from slicebook.evaluation.memorization import MemorizationResult
from slicebook.evaluation.rate_distortion import RateDistortion
from slicebook.evaluation.reconstruction import ReconstructionResult
from slicebook.evaluation.report import Evaluation, History, read_report
from slicebook.io.atomic import write_text
from slicebook.metrics.image_quality import HEADLINE
from slicebook.metrics.spectra import Curves
from slicebook.reporting import tables
from slicebook.reporting.verdicts import Verdict, patient_group, verdicts
from slicebook.text import to_rows
from slicebook.visualization import figures

PAGE_NAME = "report.html"
RECONSTRUCTIONS = (
    ("pairs.png", "Original, reconstruction and difference, from the worst slice to the best."),
    ("levels.png", "What each level adds, coarsest first."),
    ("worst.png", "The worst slices, one per patient first."),
)
SAMPLES = (
    ("samples.png", "The first samples, not selected."),
    ("real.png", "Real slices, chosen at random."),
    ("samples-masks.png", "The same samples with their masks."),
    ("real-masks.png", "The same real slices with their masks."),
)
CLOSEST = (("closest.png", "The closest pairs of a sample and a training slice."),)
MODELS: Mapping[str, str] = MappingProxyType(
    {
        "tokenizer": "tokenizer",
        "masks": "mask tokenizer",
        "prior": "prior",
        "decoder": "generation decoder",
    }
)
COPIES_TONES = {"yes": "bad", "none found": "good", "invalid": "bad"}
TONES = {"yes": "good", "partly": "fair", "no": "bad"}

Block = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Anchor of links.
        title: Heading.
        lead: What it shows, in a few sentences.
        blocks: Content for the template, each with a `kind`: picture, chart, table or terms.
    """

    name: str
    title: str
    lead: str
    blocks: list[Block]


def write_page(folder: str | Path) -> Path:
    """Write the page of an evaluation beside its report.json, and return its path.

    Raises:
        DataError: There is no report, or it is of another version.
    """
    folder = Path(folder)
    report = read_report(folder)
    provenance = report.provenance
    model = provenance["model"] or provenance["prior"]
    template = files("slicebook.reporting") / "templates"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string((template / "report.html.j2").read_text(encoding="utf-8")).render(
        style=(template / "report.css").read_text(encoding="utf-8"),
        title=f"{model['recipe']['name']} on {report.patients} {report.split} patients",
        subtitle=f"{report.slices} slices. Model {model['weights_sha256'][:12]}, split "
        f"{provenance['data']['split_hash'][:12]}, commit {(provenance['commit'] or 'none')[:12]}, "
        f"seed {provenance['seed']}.",
        versions=provenance["versions"],
        warnings=report.warnings,
        verdicts=[asdict(verdict) | {"tone": _tone(verdict)} for verdict in verdicts(report)],
        sections=list(_sections(report, folder)),
    )
    path = folder / PAGE_NAME
    write_text(path, page)
    return path


def _tone(verdict: Verdict) -> str:
    tones = COPIES_TONES if "copy" in verdict.question else TONES
    return tones.get(verdict.answer, "none")


def _sections(report: Evaluation, folder: Path) -> Iterator[Section]:
    if report.reconstruction:
        yield _reconstruction(report.reconstruction, folder)
    if report.generation and report.sampling:
        yield _generation(report.sampling, report.generation, patient_group(report), folder)
    if report.memorization:
        yield _memorization(report.memorization, folder, alone=report.generation is None)
    if report.downstream:
        yield _downstream(report.downstream, patient_group(report))
    if report.skipped:
        yield Section(
            "left-out",
            "What could not be evaluated",
            "Parts that were requested and are missing.",
            [_table("Reasons", [("part", "reason"), *report.skipped.items()])],
        )
    if report.training:
        yield Section(
            "training",
            "Training curves",
            "Training and validation only: they do not describe test patients.",
            [_history(MODELS[name], history) for name, history in report.training.items()],
        )
    yield Section(
        "provenance",
        "Provenance",
        "What is needed to reproduce these numbers.",
        [_terms("Settings, data, versions, machine", dict(to_rows(report.provenance)))],
    )


def _reconstruction(reconstruction: ReconstructionResult, folder: Path) -> Section:
    codecs = " and ".join(codec.title for codec in (reconstruction.codecs or {}).values())
    usage = figures.line_chart(
        {
            f"level {level.level}": [
                ((rank + 0.5) / len(level.shares), share) for rank, share in enumerate(level.shares)
            ]
            for level in reconstruction.levels
        },
        x="codes by rank, most used first",
        y="frequency / uniform frequency",
        title="Code usage per level",
    )
    return Section(
        "reconstruction",
        "Are reconstructions accurate?",
        f"Slices reconstructed from their tokens{', compared with ' * bool(codecs)}{codecs}. "
        f"{reconstruction.averaging}",
        [
            _table("Scores, mean of patients [95 % interval]", reconstruction.table()),
            *_pictures(folder, RECONSTRUCTIONS),
            *_rate_distortion(reconstruction.rate_distortion),
            _chart(
                usage,
                "Frequency of each level's codes in these slices, relative to uniform use. A flat line at 1 "
                "is uniform; a steep line relies on few codes.",
            ),
            _table("Codebook usage", tables.level_rows(reconstruction)),
            _terms("Definitions of the scores", tables.conventions(reconstruction)),
        ],
    )


def _generation(sampling: SamplingInfo, generation: GenerationResult, patients: str, folder: Path) -> Section:
    anatomy = tables.anatomy_rows(generation)
    return Section(
        "generation",
        "Are samples realistic?",
        f"{sampling.samples} samples of {sampling.rows}×{sampling.columns} pixels, compared with "
        f"{generation.held_out_slices} slices of {generation.held_out_patients} {patients}. The reference "
        "for each measure is the same measure between two disjoint groups of these patients. “Tokenizer "
        "alone” compares reconstructions of one group with the other group. Intervals are by patient; "
        "that of MS-SSIM is by sample.",
        [
            *_pictures(folder, SAMPLES),
            _table("Samples and real patients, equal numbers of slices", tables.generation_rows(generation)),
            _curves(generation.spectrum, "cycles per pixel", "power in dB", "Power spectra"),
            _curves(generation.intensity, "intensity", "fraction of pixels", "Intensity histograms"),
            *([_table("Masks that satisfy the anatomy rules", anatomy)] if anatomy else []),
            _terms("Definitions of the measures", tables.conventions(generation)),
        ],
    )


def _memorization(audit: MemorizationResult, folder: Path, *, alone: bool) -> Section:
    copies, membership, nearer = audit.copies, audit.membership, audit.copies.nearer
    searched = f"{audit.training_slices} training slices of {audit.training_patients} patients"
    if audit.of_other_sizes:
        searched += f" ({audit.of_other_sizes} slices of other sizes were not searched)"
    others: tables.Rows = [
        ("measure", "value [95 % interval by patient]"),
        (
            "fraction nearer than the 1 % quantile of held-out slices",
            tables.estimate(nearer.share, nearer.interval),
        ),
        ("membership AUC", tables.estimate(membership.auc, membership.interval)),
        (
            "bits per pixel of held-out slices under the prior",
            tables.number(audit.prior_bits_per_pixel.mean_of_slices),
        ),
    ]
    return Section(
        "memorization",
        "Does it copy patients?",
        f"{copies.samples} samples searched against {searched}. Baseline: {audit.baseline}. {copies.verdict}",
        [
            _table("Tests for copies", tables.gap_rows(audit)),
            _table("Positive control: planted copies", tables.control_rows(audit)),
            _table("Other measures (not used for the verdict)", others),
            *_pictures(folder, CLOSEST if not alone else (*CLOSEST, SAMPLES[0])),
            _terms("Definitions", tables.conventions(audit)),
        ],
    )


def _downstream(downstream: DownstreamResult, patients: str) -> Section:
    return Section(
        "downstream",
        "Are samples useful for training?",
        f"Dice on {patients} of a segmenter trained on {downstream.generated.pairs} samples, and of one "
        f"trained on {downstream.training_set.pairs} training slices, {downstream.steps} steps each.",
        [
            _table("Dice by label", tables.dice_rows(downstream)),
            _terms("Definition", tables.conventions(downstream)),
        ],
    )


def _rate_distortion(rate_distortion: RateDistortion) -> Iterator[Block]:
    """Yield a chart of the foreground SSIM and one of PSNR, over bits per pixel."""
    for name, label in ((HEADLINE, "foreground SSIM"), ("psnr_whole", "PSNR in dB")):
        series = {
            title: [
                (point.bits_per_pixel, score)
                for point in points
                if (score := point.scores[name]) is not None and point.bits_per_pixel > 0
            ]
            for title, points in rate_distortion.curves.items()
        }
        series = {title: points for title, points in series.items() if points}
        if series:
            title = f"{label[0].upper()}{label[1:]} over bits per pixel"
            chart = figures.line_chart(series, x="bits per pixel", y=label, title=title, log_x=True)
            yield _chart(chart, f"{title}, {rate_distortion.slices} slices. {rate_distortion.convention}.")


def _history(model: str, history: History) -> Block:
    names = {column: column.replace("_", " ") for column in history.curves}
    chart = figures.line_chart(
        {names[column]: points for column, points in history.curves.items()},
        x="step",
        y=", ".join(sorted({name.partition(" ")[2] for name in names.values()})),
        title=f"Training of the {model}",
    )
    duration = tables.duration(history.seconds)
    return _chart(chart, f"Training of the {model} ({duration}): {', '.join(names.values())}.")


def _curves(curves: Curves, x: str, y: str, title: str) -> Block:
    """Return a chart of samples and real slices over the range of real patients."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(curves.at, values, strict=True))

    chart = figures.line_chart(
        {"samples": points(curves.generated), "real": points(curves.real)},
        x=x,
        y=y,
        title=title,
        band=("real, 5 to 95 %", points(curves.real_low), points(curves.real_high)),
    )
    return _chart(chart, f"{title}. {curves.distance.convention}")


def _chart(svg: str, caption: str) -> Block:
    return {"kind": "chart", "svg": svg, "caption": caption}


def _pictures(folder: Path, captions: Sequence[tuple[str, str]]) -> Iterator[Block]:
    """Yield the pictures that exist."""
    for name, caption in captions:
        if (folder / name).is_file():
            content = base64.b64encode((folder / name).read_bytes()).decode()
            yield {"kind": "picture", "source": f"data:image/png;base64,{content}", "caption": caption}


def _table(caption: str, rows: Sequence[Sequence[str]]) -> Block:
    return {"kind": "table", "caption": caption, "rows": rows}


def _terms(caption: str, terms: Mapping[str, str]) -> Block:
    return {"kind": "terms", "caption": caption, "rows": list(terms.items())}

"""Several evaluations in one table, and the reasons why they are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.errors import ConfigError
from slicebook.evaluation.report import REPORT_NAME, Evaluation, read_report
from slicebook.metrics.statistics import Summary
from slicebook.reporting import markdown
from slicebook.reporting.tables import UNKNOWN, conventions, estimate, full_name, listed, number, share
from slicebook.reporting.verdicts import verdicts

HASH_LENGTH = 12  # characters of a hash that are shown
SCORES = ("ssim_foreground", "ssim_whole", "psnr_whole")
DISTANCES = ("kernel distance", "Fréchet distance", "spectrum", "intensities")  # lower is better
NOTES = (
    "In brackets: the 95 % interval by patient (of MS-SSIM and the anatomy rules by sample), for each report "
    "alone. Where two intervals overlap, a difference may still be significant: a paired comparison on the "
    "same patients is more precise.",
    "Lower is better for bits, distances, spectrum, intensities, samples beyond the gap and membership AUC "
    "(0.5 is chance). MS-SSIM of pairs should be close to that of real patients. For everything else, higher "
    "is better.",
    "“up to”: the 95th percentile between groups of real patients. “real”: the value of real patients. “of”: "
    "the value of the training set, or the number of planted copies.",
)


@dataclass(frozen=True)
class Cell:
    """One measure of one report, as text and, where it is a number, as a number."""

    text: str
    value: float | None = None


Cells = dict[str, Cell]
"""The cells of one report, by measure."""


@dataclass(frozen=True)
class Row:
    """One measure, with a cell for each report; None where a report does not have it."""

    measure: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class SideBySide:
    """Several evaluations side by side.

    Attributes:
        titles: One per report: the end of its path that is unique.
        differences: Why the reports are not comparable, one sentence each.
        warnings: The warnings of each report.
        rows: Measures that at least one report has.
        conventions: Definitions of the measures, by name.
    """

    titles: tuple[str, ...]
    differences: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    conventions: dict[str, str]

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Return the rows as text, the titles first."""
        texts = ((row.measure, *(cell.text if cell else UNKNOWN for cell in row.cells)) for row in self.rows)
        return (("measure", *self.titles), *texts)

    def page(self) -> str:
        """Return all of it as Markdown."""
        parts = ["# Comparison of evaluations"]
        if self.differences:
            parts += ["**These reports are not comparable:**", _bullets(self.differences)]
        parts += [markdown.table(self.table()), *NOTES]
        if self.conventions:
            definitions = [f"{name}: {text}" for name, text in self.conventions.items()]
            parts += ["Definitions:", _bullets(definitions)]
        if self.warnings:
            parts += ["Warnings of the reports:", _bullets(self.warnings)]
        return "\n\n".join(parts) + "\n"


def compare_reports(folders: Sequence[str | Path]) -> SideBySide:
    """Put evaluations side by side.

    Args:
        folders: Two or more folders that `slicebook evaluate` wrote, or their report.json.

    Raises:
        ConfigError: There are fewer than two.
        DataError: One is no report, or of another version.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} report to compare, wanted two or more; give another report")
    reports = [read_report(folder) for folder in folders]
    titles = _titles([Path(folder) for folder in folders])
    rows: list[Row] = []
    for part in (_verdicts, _reconstruction, _generation, _memorization, _downstream, _provenance):
        columns = [part(report) for report in reports]
        measures = dict.fromkeys(name for column in columns for name in column)
        rows += [Row(name, tuple(column.get(name) for column in columns)) for name in measures]
    definitions = [_conventions(report) for report in reports]
    return SideBySide(
        titles=titles,
        differences=(*_differences(titles, reports), *_redefinitions(titles, definitions)),
        warnings=tuple(
            f"{title}: {warning}"
            for title, report in zip(titles, reports, strict=True)
            for warning in report.warnings
        ),
        rows=tuple(rows),
        conventions=_merged(titles, definitions),
    )


def write_comparison(comparison: SideBySide, path: Path) -> None:
    """Write a comparison as Markdown.

    Raises:
        ConfigError: The file exists and was not written by `slicebook compare`.
    """
    markdown.write(path, comparison.page(), "compare")


def _titles(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the shortest unique end of each path, numbered where a path is repeated."""
    places = [path.resolve().parent if path.name == REPORT_NAME else path.resolve() for path in folders]
    titles: list[str] = []
    for place in places:
        others = [other for other in places if other != place]
        ends = ["/".join(place.parts[-depth:]) for depth in range(1, len(place.parts) + 1)]
        title = next(end for end in ends if not any(f"/{other}".endswith(f"/{end}") for other in others))
        again = places[: len(titles)].count(place)
        titles.append(f"{title} ({again + 1})" if again else title)
    return tuple(titles)


def _verdicts(report: Evaluation) -> Cells:
    return {verdict.question: Cell(verdict.answer) for verdict in verdicts(report)}


def _reconstruction(report: Evaluation) -> Cells:
    reconstruction = report.reconstruction
    if not reconstruction:
        return {}
    rate, codec = reconstruction.bits_per_pixel.mean_of_slices, (reconstruction.codecs or {}).get("jpeg2000")
    cells = {"bits_per_pixel": Cell(number(rate), rate)}
    cells |= {name: _summary(reconstruction.scores[name]) for name in SCORES}
    if codec:
        cells[f"{reconstruction.headline} minus {codec.title}"] = _summary(
            codec.advantage[reconstruction.headline]
        )
    return cells


def _generation(report: Evaluation) -> Cells:
    generation = report.generation
    if not generation:
        return {}
    cells = {}
    for measure in generation.measures():
        reference = f"real {number(measure.real)}"
        if measure.measure in DISTANCES and measure.real_range:
            reference = f"up to {number(measure.real_range[1])}"
        value = estimate(measure.generated, measure.interval)
        cells[full_name(measure)] = Cell(f"{value}, {reference}", measure.generated)
    if anatomy := generation.anatomy:
        value = estimate(anatomy.generated, anatomy.generated_interval)
        cells["masks that satisfy the anatomy rules"] = Cell(
            f"{value}, real {number(anatomy.real)}", anatomy.generated
        )
    return cells


def _memorization(report: Evaluation) -> Cells:
    if not report.memorization:
        return {}
    copies, membership = report.memorization.copies, report.memorization.membership
    (many, single), planted = copies.tests, copies.controls[-1]
    beyond = f"{many.exceeding} (copies from {many.needed}) and {single.exceeding} (from {single.needed})"
    return {
        "samples beyond the gap": Cell(f"{beyond} of {copies.samples}", many.exceeding),
        "planted copies detected": Cell(f"{share(planted.detected)} of {planted.planted}", planted.detected),
        "membership AUC": Cell(estimate(membership.auc, membership.interval), membership.auc),
    }


def _downstream(report: Evaluation) -> Cells:
    if not report.downstream:
        return {}
    generated, reference = report.downstream.generated.mean, report.downstream.training_set.mean
    return {"Dice of the segmenter": Cell(f"{number(generated)} of {number(reference)}", generated)}


def _provenance(report: Evaluation) -> Cells:
    provenance, cells = report.provenance, {}
    for name, model in (("tokenizer", provenance["model"]), ("prior", provenance["prior"])):
        if model:
            cells[name] = Cell(f"{model['recipe']['name']} {model['weights_sha256'][:HASH_LENGTH]}")
    cells["split"] = Cell(report.split)
    cells["split hash"] = Cell(provenance["data"]["split_hash"][:HASH_LENGTH])
    counts = {"patients": report.patients, "slices": report.slices, "seed": provenance["seed"]}
    if report.sampling:
        counts["samples"] = report.sampling.samples
    cells |= {name: Cell(str(count), count) for name, count in counts.items()}
    if provenance["commit"]:
        cells["commit"] = Cell(provenance["commit"][:HASH_LENGTH])
    return cells


def _conventions(report: Evaluation) -> dict[str, str]:
    """Return the definitions of the measures in the table."""
    parts = (report.reconstruction, report.generation, report.memorization, report.downstream)
    definitions = {name: text for part in parts if part for name, text in conventions(part).items()}
    hidden = set(report.reconstruction.scores) - set(SCORES) if report.reconstruction else set()
    return {name: text for name, text in definitions.items() if name not in hidden}


def _summary(summary: Summary) -> Cell:
    return Cell(summary.in_words(), summary.mean_of_patients)


def _merged(titles: Sequence[str], definitions: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return all definitions by name; a second definition of a name has the title of its report."""
    merged: dict[str, str] = {}
    for title, of_report in zip(titles, definitions, strict=True):
        for name, text in of_report.items():
            if merged.setdefault(name, text) != text:
                merged[f"{name} in {title}"] = text
    return merged


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown.clean(line)}" for line in lines)


def _preparation(report: Evaluation) -> str:
    data = report.provenance["data"]
    return ", ".join(
        (
            data["plane"] or "several planes",
            f"{data['spacing']:g} mm" if data["spacing"] else "native pixels",
            "×".join(map(str, data["size"])) if data["size"] else "native size",
            f"percentiles {' and '.join(map(str, data['percentiles']))}",
        )
    )


def _sampling(report: Evaluation) -> str | None:
    sampling = report.sampling
    if not sampling:
        return None
    settings = ", ".join(f"{name} {value:g}" for name, value in sampling.settings.items())
    return f"{sampling.rows}×{sampling.columns}, {settings}"


# What all reports that have it must share, and what to do where it differs.
SAME: tuple[tuple[str, Callable[[Evaluation], Any], str], ...] = (
    (
        "split hash",
        lambda report: report.provenance["data"]["split_hash"][:HASH_LENGTH],
        "The patients or their split differ; evaluate all models on one prepared folder",
    ),
    ("preparation", _preparation, "The slices differ; evaluate all models on one prepared folder"),
    (
        "split",
        lambda report: report.split,
        "The checkpoint was selected on validation patients and trained on training patients; evaluate all "
        "models on one split",
    ),
    (
        "number of samples",
        lambda report: report.sampling and report.sampling.samples,
        "Distances and copy tests depend on it; evaluate the same number (-n)",
    ),
    ("sampling", _sampling, "Every measure of samples depends on it; evaluate all with the same settings"),
    (
        "features",
        lambda report: listed(list(report.generation.features)) if report.generation else None,
        "The verdict on generation depends on them; evaluate all with the same extras installed",
    ),
    (
        "training of the segmenter",
        lambda report: report.downstream and f"{report.downstream.steps} steps",
        "Dice depends on it; evaluate all with the same number of steps",
    ),
    ("seed", lambda report: report.provenance["seed"], "Evaluate all with one seed (--seed)"),
)


def _differences(titles: Sequence[str], reports: Sequence[Evaluation]) -> Iterator[str]:
    """Yield what differs that should not, in which reports, and what to do."""
    for name, value_of, advice in SAME:
        if text := _by_value(titles, [value_of(report) for report in reports]):
            yield f"{name} is {text}. {advice}."


def _redefinitions(titles: Sequence[str], definitions: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield measures that are not defined the same in all reports."""
    for name in dict.fromkeys(name for of_report in definitions for name in of_report):
        texts = [of_report.get(name) for of_report in definitions]
        known = list(dict.fromkeys(text for text in texts if text))
        numbers = [f"by definition {known.index(text) + 1}" if text else None for text in texts]
        if text := _by_value(titles, numbers):
            yield f"{name} is computed {text}. Evaluate slices of one size with one version of Slicebook."


def _by_value(titles: Sequence[str], values: Sequence[Any]) -> str:
    """Return which reports have which value; empty where all that have one have the same."""
    titles_of: dict[Any, list[str]] = {}
    for title, value in zip(titles, values, strict=True):
        if value is not None:
            titles_of.setdefault(value, []).append(title)
    if len(titles_of) < 2:
        return ""
    return ", and ".join(f"{value} in {listed(names)}" for value, names in titles_of.items())

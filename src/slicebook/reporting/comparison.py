"""Several evaluations in one table, and why they may not be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.errors import ConfigError
from slicebook.evaluate import REPORT_NAME, Evaluation
from slicebook.metrics.beside import Beside
from slicebook.metrics.summary import Summary
from slicebook.reporting import markdown
from slicebook.reporting.answers import answers
from slicebook.reporting.page import read_report
from slicebook.reporting.tables import conventions, named, sample_count
from slicebook.reporting.wording import UNKNOWN, estimate, listed, number, share

SHORT = 12  # characters of a hash
SCORES = ("ssim_foreground", "ssim_whole", "psnr_whole")
NEARNESS = ("kernel_distance", "frechet_distance")
SHARES = ("coverage", "recall", "density", "precision")
NOTES = (
    "In brackets: the 95 % interval by patient, of each report by itself. Where two intervals overlap, a "
    "difference may still be real: on the same patients it is known better than each side is.",
    "Less is better of bits, distances, samples beyond the gap and membership (0.5 tells nothing); MS-SSIM "
    "of pairs is best where real patients' is; of all else, more is better.",
    "“up to”: the 95th percentile of the same between groups of real patients. “of”, “beside”: the same of "
    "real patients, or of the training set.",
)


@dataclass(frozen=True)
class Cell:
    """What one report says of one measure.

    Attributes:
        text: In words, with what stands beside it.
        value: The number in it, where it is one.
    """

    text: str
    value: float | None = None


Cells = dict[str, Cell]
"""Of one report, by measure."""


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        measure: Its name.
        cells: Of each report; None where it has none.
    """

    measure: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Several evaluations side by side.

    Attributes:
        titles: One a report: its folder, and as much of the path above it as tells it from the others.
        differences: Why the reports cannot be compared as they stand, one sentence each.
        warnings: What each report itself warns of.
        rows: Measures that some report has.
        conventions: What was measured, by name.
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
        parts = ["# Evaluations compared"]
        if self.differences:
            parts += ["**These reports cannot be compared as they stand:**", _bullets(self.differences)]
        parts += [markdown.table(self.table()), *NOTES]
        if self.conventions:
            parts += [
                "What was measured:",
                _bullets([f"{name}: {text}" for name, text in self.conventions.items()]),
            ]
        if self.warnings:
            parts += ["What the reports warn of:", _bullets(self.warnings)]
        return "\n\n".join(parts) + "\n"


def compare_reports(folders: Sequence[str | Path]) -> Comparison:
    """Put evaluations side by side.

    Args:
        folders: Two or more folders that `slicebook evaluate` wrote, or their report.json.

    Raises:
        ConfigError: There are fewer than two.
        DataError: One is no report, or of another version.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} report to compare, wanted two or more; give another one beside it")
    found = [read_report(folder) for folder in folders]
    titles = _titles([Path(folder) for folder in folders])
    rows: list[Row] = []
    for part in (_answers, _fidelity, _generation, _audit, _usefulness, _origin):
        columns = [part(one) for one in found]
        measures = dict.fromkeys(name for column in columns for name in column)
        rows += [Row(name, tuple(column.get(name) for column in columns)) for name in measures]
    measured = [_conventions(one) for one in found]
    return Comparison(
        titles=titles,
        differences=(*_differences(titles, found), *_redefined(titles, measured)),
        warnings=tuple(
            f"{title}: {warning}"
            for title, one in zip(titles, found, strict=True)
            for warning in one.warnings
        ),
        rows=tuple(rows),
        conventions={name: text for one in reversed(measured) for name, text in one.items()},
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write it as a page of Markdown.

    Raises:
        ConfigError: There is a file that `slicebook compare` did not write.
    """
    markdown.write(path, comparison.page(), "compare")


def _titles(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the shortest end of each path that no other has; a number where paths are the same."""
    places = [path.resolve().parent if path.name == REPORT_NAME else path.resolve() for path in folders]
    titles: list[str] = []
    for place in places:
        others = [other for other in places if other != place]
        ends = ["/".join(place.parts[-depth:]) for depth in range(1, len(place.parts) + 1)]
        title = next(end for end in ends if not any(f"/{other}".endswith(f"/{end}") for other in others))
        again = places[: len(titles)].count(place)
        titles.append(f"{title} ({again + 1})" if again else title)
    return tuple(titles)


def _answers(found: Evaluation) -> Cells:
    return {answer.question: Cell(answer.verdict) for answer in answers(found)}


def _fidelity(found: Evaluation) -> Cells:
    fidelity = found.fidelity
    if not fidelity:
        return {}
    rate, codec = fidelity.bits_per_pixel.mean_of_slices, (fidelity.codecs or {}).get("jpeg2000")
    cells = {"bits_per_pixel": Cell(number(rate), rate)}
    cells |= {name: _summary(fidelity.scores[name]) for name in SCORES}
    if codec:
        cells[f"{fidelity.headline} less {codec.title}'s"] = _summary(codec.advantage[fidelity.headline])
    return cells


def _generation(found: Evaluation) -> Cells:
    likeness = found.generation
    if not likeness:
        return {}
    measures: dict[str, tuple[Beside | None, bool]] = {}  # and whether less is nearer
    for kind, features in likeness.features.items():
        for less, field in [(True, name) for name in NEARNESS] + [(False, name) for name in SHARES]:
            measures[f"{kind}: {named(field)}"] = (getattr(features.samples, field), less)
    measures["power spectrum: distance"] = (likeness.spectrum.distance, True)
    measures["intensities: distance"] = (likeness.intensity.distance, True)
    cells = {}
    for name, (one, less) in measures.items():
        if one:
            theirs = f", up to {number(one.real_range[1])}" if less else f" of {number(one.real)}"
            cells[name] = Cell(estimate(one.generated, one.interval) + theirs, one.generated)
    alike, anatomy = likeness.diversity, likeness.anatomy
    said = f"{estimate(alike.generated, alike.generated_interval)} beside {number(alike.real)}"
    cells["MS-SSIM of pairs"] = Cell(said, alike.generated)
    if anatomy:
        said = f"{estimate(anatomy.generated, anatomy.generated_interval)} beside {number(anatomy.real)}"
        cells["masks right by the rules of anatomy"] = Cell(said, anatomy.generated)
    return cells


def _audit(found: Evaluation) -> Cells:
    if not found.audit:
        return {}
    copies, member = found.audit.copies, found.audit.membership
    (many, one), planted = copies.tests, copies.controls[-1]
    beyond = (
        f"{many.beyond} (copies from {many.needed}) and {one.beyond} (from {one.needed}) of {copies.samples}"
    )
    return {
        "samples beyond the gap": Cell(beyond, many.beyond),
        "planted copies seen": Cell(f"{share(planted.seen)} of {planted.planted}", planted.seen),
        "membership AUC": Cell(estimate(member.auc, member.interval), member.auc),
    }


def _usefulness(found: Evaluation) -> Cells:
    if not found.usefulness:
        return {}
    ours, theirs = found.usefulness.generated.mean, found.usefulness.training_set.mean
    return {"Dice of the segmenter": Cell(f"{number(ours)} of {number(theirs)}", ours)}


def _origin(found: Evaluation) -> Cells:
    made, cells = found.provenance, {}
    for name, model in (("tokenizer", made["model"]), ("prior", made["prior"])):
        if model:
            cells[name] = Cell(f"{model['recipe']['name']} {model['weights_sha256'][:SHORT]}")
    cells["split"] = Cell(found.split)
    cells["split hash"] = Cell(made["data"]["split_hash"][:SHORT])
    counts = {"patients": found.patients, "slices": found.slices, "samples": sample_count(found)}
    counts["seed"] = made["seed"]
    cells |= {name: Cell(str(count), count) for name, count in counts.items() if count is not None}
    if made["commit"]:
        cells["commit"] = Cell(made["commit"][:SHORT])
    return cells


def _conventions(found: Evaluation) -> dict[str, str]:
    parts = (found.fidelity, found.generation, found.audit, found.usefulness)
    said = {name: text for part in parts if part for name, text in conventions(part).items()}
    unshown = set(found.fidelity.scores) - set(SCORES) if found.fidelity else set()
    return {name: text for name, text in said.items() if name not in unshown}


def _summary(one: Summary) -> Cell:
    return Cell(one.in_words(), one.mean_of_patients)


def _preparation(found: Evaluation) -> str:
    data = found.provenance["data"]
    parts = [
        data["plane"] or "several planes",
        f"{data['spacing']:g} mm" if data["spacing"] else "native pixels",
        "×".join(map(str, data["size"])) if data["size"] else "native size",
        f"percentiles {' and '.join(map(str, data['percentiles']))}",
    ]
    return ", ".join(parts)


def _drawing(found: Evaluation) -> str | None:
    if not found.generation:
        return None
    drawing = found.generation.drawing
    settings = ", ".join(f"{name} {value:g}" for name, value in drawing.settings.items())
    return f"{drawing.rows}×{drawing.columns}, {settings}"


# What must be the same in all reports that have it, and what it spoils where it is not.
SAME: tuple[tuple[str, Callable[[Evaluation], Any], str], ...] = (
    (
        "split hash",
        lambda found: found.provenance["data"]["split_hash"][:SHORT],
        "Other patients, or the same divided otherwise; judge all on one prepared folder",
    ),
    ("preparation", _preparation, "The slices themselves differ; judge all on one prepared folder"),
    (
        "split",
        lambda found: found.split,
        "Validation patients chose the model, and training patients taught it; judge all on one split",
    ),
    (
        "number of samples",
        sample_count,
        "Distances and copies hang on their number; judge all with the same (-n)",
    ),
    (
        "sampling",
        _drawing,
        "Bolder samples, or samples of another size, are other samples; judge all with the same settings",
    ),
    (
        "the set of features",
        lambda found: listed(list(found.generation.features)) if found.generation else None,
        "Whether a model generates hangs on all of them; judge all with the same extras installed",
    ),
    (
        "the training of the segmenter",
        lambda found: found.usefulness and f"{found.usefulness.steps} steps",
        "One that is taught longer learns more from the same pairs; judge all with as many",
    ),
    (
        "seed",
        lambda found: found.provenance["seed"],
        "Chance differs too; judge all with one (--seed)",
    ),
)


def _differences(titles: Sequence[str], found: Sequence[Evaluation]) -> Iterator[str]:
    for what, value_of, why in SAME:
        values = [value_of(one) for one in found]
        if told := _told_apart(titles, values):
            yield f"{what} is {told}. {why}."


def _redefined(titles: Sequence[str], measured: Sequence[dict[str, str]]) -> Iterator[str]:
    """Name measures that are not the same thing in all reports."""
    for name in dict.fromkeys(name for one in measured for name in one):
        if told := _told_apart(titles, [one.get(name) for one in measured]):
            yield f"the definition of {name} is {told}. Judge all with one version of Slicebook."


def _told_apart(titles: Sequence[str], values: Sequence[Any]) -> str:
    """Say which reports have which value; nothing where all that have one have the same."""
    whose: dict[Any, list[str]] = {}
    for title, value in zip(titles, values, strict=True):
        if value is not None:
            whose.setdefault(value, []).append(title)
    if len(whose) < 2:
        return ""
    return ", and ".join(f"{value} in {listed(names)}" for value, names in whose.items())


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown.clean(line)}" for line in lines)

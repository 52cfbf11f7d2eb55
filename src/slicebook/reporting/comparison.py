"""Several evaluations in one table, and why they may not be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slicebook.errors import ConfigError
from slicebook.evaluation import REPORT_NAME, Evaluation, read_report
from slicebook.metrics.statistics import Summary
from slicebook.reporting import comparable, markdown
from slicebook.reporting.answers import answers
from slicebook.reporting.comparable import SHORT
from slicebook.reporting.tables import conventions, titled
from slicebook.reporting.wording import UNKNOWN, estimate, number, share

SCORES = ("ssim_foreground", "ssim_whole", "psnr_whole")
NEARNESS = ("kernel distance", "Fréchet distance", "spectrum", "intensities")  # less is nearer
NOTES = (
    "In brackets: the 95 % interval by patient (of MS-SSIM and the rules of anatomy by sample), of each "
    "report by itself. Where two intervals overlap, a "
    "difference may still be real: on the same patients it is known better than each side is.",
    "Less is better of bits, distances, spectrum, intensities, samples beyond the gap, and membership (0.5 "
    "tells nothing); MS-SSIM of pairs is best where real patients' is; of all else, more is better.",
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
class SideBySide:
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


def compare_reports(folders: Sequence[str | Path]) -> SideBySide:
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
    return SideBySide(
        titles=titles,
        differences=(*comparable.differences(titles, found), *comparable.redefined(titles, measured)),
        warnings=tuple(
            f"{title}: {warning}"
            for title, one in zip(titles, found, strict=True)
            for warning in one.warnings
        ),
        rows=tuple(rows),
        conventions=_all_conventions(titles, measured),
    )


def write_comparison(comparison: SideBySide, path: Path) -> None:
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
    cells = {}
    for one in likeness.measures():
        beside = f" beside {number(one.real)}"
        if one.measure in NEARNESS and one.real_range:
            beside = f", up to {number(one.real_range[1])}"
        elif one.features:
            beside = f" of {number(one.real)}"
        cells[titled(one)] = Cell(estimate(one.generated, one.interval) + beside, one.generated)
    if anatomy := likeness.anatomy:
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
    counts = {"patients": found.patients, "slices": found.slices, "seed": made["seed"]}
    if found.drawing:
        counts["samples"] = found.drawing.samples
    cells |= {name: Cell(str(count), count) for name, count in counts.items()}
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


def _all_conventions(titles: Sequence[str], measured: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return what was measured, by name; where a report means something else, again under its title."""
    found: dict[str, str] = {}
    for title, one in zip(titles, measured, strict=True):
        for name, text in one.items():
            if found.setdefault(name, text) != text:
                found[f"{name} in {title}"] = text
    return found


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown.clean(line)}" for line in lines)

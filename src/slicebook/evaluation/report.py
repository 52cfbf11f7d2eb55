"""The report of an evaluation: one JSON file, in a folder that is written atomically."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from slicebook.data.splits import Split
from slicebook.errors import DataError
from slicebook.evaluation.downstream import DownstreamResult
from slicebook.evaluation.generation import GenerationResult, SamplingInfo
from slicebook.evaluation.memorization import MemorizationResult
from slicebook.evaluation.reconstruction import ReconstructionResult
from slicebook.io.atomic import write_text
from slicebook.io.resumable import PartialFolder, resuming_files
from slicebook.records import Record

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tokenizer": ("train_loss", "validation_loss"),
        "masks": ("train_loss", "validation_loss"),
        "prior": ("validation_log_score",),
        "decoder": ("train_loss", "validation_loss"),
    }
)


class History(Record):
    """Training history of one model.

    Attributes:
        seconds: Duration, validation included.
        curves: Points (step, value), by column of metrics.csv.
    """

    seconds: float
    curves: dict[str, tuple[tuple[int, float], ...]]


REPORT_NAME, SCHEMA_NAME = "report.json", "report.schema.json"
PARTIAL = ".slicebook-evaluation"  # folder of an unfinished evaluation
# All files that an evaluation or its page may write; earlier ones are removed with the report they belong to.
WRITTEN = (
    *(REPORT_NAME, SCHEMA_NAME, "report.html", "slices.csv", "patients.csv", "measures.csv", "closest.csv"),
    *("pairs.png", "worst.png", "levels.png", "closest.png"),
    *("samples.png", "real.png", "samples-masks.png", "real-masks.png"),
)
PARTS = ("reconstruction", "generation", "memorization", "downstream")


class Evaluation(Record):
    """The results of `slicebook evaluate`; the content of `report.json`.

    Parts that were not requested or could not be evaluated are None; `skipped` has the reasons of the latter.
    """

    schema_version: Literal[5] = 5
    split: Split
    patients: int
    slices: int
    blank_slices_skipped: int
    warnings: tuple[str, ...]
    skipped: dict[str, str]
    sampling: SamplingInfo | None = None
    """Settings and speed of the samples' generation."""
    reconstruction: ReconstructionResult | None = None
    generation: GenerationResult | None = None
    memorization: MemorizationResult | None = None
    downstream: DownstreamResult | None = None
    training: dict[str, History]
    """Training history of each model that has one in its folder."""
    seconds: dict[str, float]
    """Duration of each piece of work."""
    provenance: dict[str, Any]

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Return the main numbers as rows of text."""
        rows = list(self.reconstruction.table()) if self.reconstruction else []
        width = len(rows[0]) if rows else 2
        entries: list[tuple[str, str]] = []
        if self.generation:
            for name, features in self.generation.features.items():
                for measure in ("kernel_distance", "coverage", "recall"):
                    relative = getattr(features.samples, measure)
                    if relative is not None:
                        text = f"{relative.generated:.3g}, real patients {relative.real:.3g}"
                        entries.append((f"{name} {measure}", text))
            if self.generation.anatomy:
                anatomy = self.generation.anatomy
                entries.append(
                    ("anatomy_rules", f"{anatomy.generated:.1%}, real patients {anatomy.real:.1%}")
                )
        if self.memorization:
            copies = self.memorization.copies
            text = "found" if copies.copies_found else "none found" if copies.valid else "INVALID audit"
            entries.append(("copies", text))
            entries.append(("membership_auc", f"{self.memorization.membership.auc:.3f}"))
        if self.downstream and self.downstream.generated.mean is not None:
            baseline = self.downstream.training_set.mean
            text = f"{self.downstream.generated.mean:.3f}" + (f" of {baseline:.3f}" if baseline else "")
            entries.append(("segmenter_dice", text))
        return tuple(rows + [row + ("",) * (width - 2) for row in entries])


def write_report(folder: Path, report: Evaluation) -> None:
    """Write a report and its JSON schema."""
    schema = json.dumps(Evaluation.model_json_schema(), indent=1)
    write_text(folder / SCHEMA_NAME, schema + "\n")
    write_text(folder / REPORT_NAME, report.model_dump_json(indent=1) + "\n")


def read_report(folder: str | Path) -> Evaluation:
    """Read the report of `slicebook evaluate`.

    Args:
        folder: The output folder, or report.json itself.

    Raises:
        DataError: There is no report, or it is of another version.
    """
    path = Path(folder)
    path = path / REPORT_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: there is no report; run first: slicebook evaluate MODEL DATA --out DIR")
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(
            f"{path}: is not a report of this version of Slicebook ({error.error_count()} invalid fields); "
            "evaluate again"
        ) from error


@contextmanager
def written_whole(out: Path, request: Mapping[str, Any]) -> Iterator[PartialFolder]:
    """Yield a partial folder; at the end its files replace those of an earlier evaluation, the report last.

    What an interrupted evaluation of the same request has done is still there.

    Args:
        out: Folder of the report.
        request: All that the report depends on, as JSON values.

    Raises:
        ConfigError: Another evaluation writes there.
        DataError: `out` is a file, or has files of these names that are not from an evaluation.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder for the report (--out)")
    is_evaluation = _is_report(out / REPORT_NAME) or (out / PARTIAL).exists()
    existing = [name for name in WRITTEN if (out / name).exists()]
    if existing and not is_evaluation:
        raise DataError(
            f"{out}: has a file {existing[0]}, which would be overwritten, but no report of Slicebook; "
            "choose another folder (--out)"
        )
    with resuming_files(out, request, names=WRITTEN, last=REPORT_NAME, partial=PARTIAL) as work:
        yield work


def _is_report(path: Path) -> bool:
    """Return whether a file is a report of any version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "skipped", "provenance"} <= content.keys()


def read_history(tokenizer: Path | None, prior: Path | None) -> dict[str, History]:
    """Return the training history of each model that has a metrics.csv in its folder.

    Args:
        tokenizer: Folder of the tokenizer's run.
        prior: Folder of the prior, which contains those of the mask tokenizer and of the decoder.
    """
    folders = {
        "tokenizer": tokenizer,
        "masks": prior and prior / "masks",
        "prior": prior,
        "decoder": prior and prior / "decoder",
    }
    histories = {
        name: _read_history(folder / "metrics.csv", COLUMNS[name])
        for name, folder in folders.items()
        if folder
    }
    return {name: history for name, history in histories.items() if history}


def _read_history(path: Path, columns: tuple[str, ...]) -> History | None:
    """Return the history in a file; None if it is missing or empty, as for a model that was copied alone."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step") and row.get("seconds")]
    curves = {
        name: tuple(
            (int(row["step"]), float(row[name]))
            for row in rows
            if math.isfinite(float(row.get(name) or "nan"))
        )
        for name in columns
    }
    kept = {name: points for name, points in curves.items() if points}
    return History(seconds=float(rows[-1]["seconds"]), curves=kept) if kept else None

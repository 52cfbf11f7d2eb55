"""Arguments and options that several commands share, and how commands print."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slicebook import text

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of volumes or slices.")]
Prepared = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `slicebook prepare`.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file, or the folder of a training run or demo.")
]
PriorModel = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Prior file, or the folder of a run or demo that contains one."),
]
Source = Annotated[Path, typer.Argument(metavar="IN", help="NIfTI or DICOM file, or a folder of them.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature of all token grids but the finest; lower is less diverse.")
]
FineTemperature = Annotated[float, typer.Option(help="Sampling temperature of the finest token grid.")]
TopP = Annotated[float, typer.Option(help="Sample from the most likely codes with this total probability.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance weight; 0 turns it off.")]
Noise = Annotated[bool, typer.Option(help="Add noise like that of the training set.")]
Layout = Annotated[
    Literal["hipmri2d", "nnunet", "bids", "nifti", "dicom"] | None,
    typer.Option(help="Folder layout; detected by default."),
]
Plane = Annotated[
    Literal["axial", "sagittal", "coronal"] | None,
    typer.Option(help="Slice orientation; the acquired one by default."),
]
PatientRegex = Annotated[
    str | None,
    typer.Option(help="Regular expression searched in each path; its one group is the patient."),
]
Series = Annotated[
    str | None,
    typer.Option(help="Use only DICOM series whose description or UID matches this regular expression."),
]
Mask = Annotated[
    str | None,
    typer.Option(
        help="Name of an image's mask file: `_t2=_prostate` replaces a part, `_seg` is appended to the name."
    ),
]
Recipe = Annotated[str, typer.Option(help="Recipe name, or a YAML file.")]
TrainingSeed = Annotated[int | None, typer.Option(min=0, help="Training seed; the recipe's by default.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, 32-true or bf16-mixed; on a GPU also 16-mixed.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of data loading processes; 0 uses none.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def out_option(metavar: str, text: str) -> Any:
    """Return the option that names a command's output."""
    return typer.Option("-o", "--out", metavar=metavar, help=text)


def say(line: str) -> None:
    """Print a message that is not a result, on stderr."""
    typer.echo(line, err=True)


def counter(what: str) -> Callable[[int, int], None] | None:
    """Return a progress counter, or None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: typer.echo(f"\r{what} {done} of {total}", nl=done == total, err=True)


def show(record: object, rows: Iterable[Sequence[object]], as_json: bool) -> None:
    """Print a result: the record as JSON, or its rows as a table."""
    typer.echo(text.to_json(record) if as_json else text.table(rows))

"""What commands share: their arguments and options, and how they speak."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slicebook import text

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of volumes or of slices.")]
Prepared = Annotated[Path, typer.Argument(metavar="DATA", help="Folder that `slicebook prepare` wrote.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model file, or the folder of a run or of a demo.")
]
PriorModel = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A prior's file, or the folder of a run or demo with one."),
]
Temperature = Annotated[float, typer.Option(help="Of the coarser grids; lower is likelier.")]
FineTemperature = Annotated[float, typer.Option(help="Of the finest grid.")]
TopP = Annotated[float, typer.Option(help="Draw among the likeliest codes that hold this share.")]
Guidance = Annotated[float, typer.Option(help="Push towards the conditions; 0 is off.")]
Source = Annotated[Path, typer.Argument(metavar="IN", help="NIfTI or DICOM file, or a folder of either.")]
Layout = Annotated[
    Literal["hipmri2d", "nnunet", "bids", "nifti", "dicom"] | None,
    typer.Option(help="Recognised when not given."),
]
Plane = Annotated[
    Literal["axial", "sagittal", "coronal"] | None, typer.Option(help="The acquired one when not given.")
]
PatientRegex = Annotated[
    str | None, typer.Option(help="Searched in each path; its one group is the patient. Never guessed.")
]
Series = Annotated[
    str | None,
    typer.Option(help="Take only series with this regular expression in their description or UID."),
]
Mask = Annotated[
    str | None, typer.Option(help="Where an image's mask is: _t2=_prostate replaces, _seg adds to the name.")
]
Recipe = Annotated[str, typer.Option(help="Name of a recipe, or a YAML file.")]
TrainingSeed = Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, 32-true, bf16-mixed; on a GPU also 16-mixed.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read slices ahead; 0: none.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_recipe(name: str, settings: Sequence[str], seed: int | None) -> Any:
    """Return a recipe with settings, and a seed if one was given, over it."""
    from slicebook.recipes import load_recipe

    return load_recipe(name, [*settings, *([] if seed is None else [f"training.seed={seed}"])])


def say(line: str) -> None:
    """Tell the user something that is no result: on stderr."""
    typer.echo(line, err=True)


def counter(what: str) -> Callable[[int, int], None] | None:
    """Return a counter for a person's screen; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: typer.echo(f"\r{what} {done} of {total}", nl=done == total, err=True)


def show(record: object, rows: Iterable[Sequence[object]], as_json: bool) -> None:
    """Print a result: the record as JSON, or its rows as a table."""
    typer.echo(text.to_json(record) if as_json else text.table(rows))

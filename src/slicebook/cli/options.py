"""Arguments and options that several commands share, and how commands print."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slicebook import text
from slicebook.progress import Progress, ProgressLine

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of volumes. Subfolders are searched.")]
Prepared = Annotated[Path, typer.Argument(metavar="DATA", help="Folder written by `slicebook prepare`.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file, run folder, demo folder or starter:NAME.")
]
PriorModel = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Prior file, or the run folder, demo folder or starter:NAME that contains a prior.",
    ),
]
Source = Annotated[Path, typer.Argument(metavar="IN", help="NIfTI or DICOM file, or a folder of such files.")]
Steps = Annotated[
    int,
    typer.Option(help="Evaluations of the prior's network per slice, from noise to codes.", min=1, max=1000),
]
DecoderSteps = Annotated[
    int,
    typer.Option(
        help="Evaluations of the generation decoder per slice. Without such a decoder: no effect.",
        min=1,
        max=1000,
    ),
]
Refine = Annotated[
    int,
    typer.Option(
        help="Steps of a search for better tokens, with gradients through the decoder; 0 uses those of the "
        "encoder. 40 steps raise SSIM by about 0.015; each step takes about 0.01 s per slice of 128×128.",
        min=0,
        max=1000,
    ),
]
Guidance = Annotated[
    float,
    typer.Option(help="Weight of classifier-free guidance towards position and class; 0 turns it off."),
]
Layout = Annotated[
    Literal["hipmri2d", "nnunet", "bids", "hipmri3d", "nifti", "itk", "pictures", "dicom"] | None,
    typer.Option(help="File naming and folder structure of DATA. Default: detected."),
]
Plane = Annotated[
    Literal["axial", "sagittal", "coronal"] | None,
    typer.Option(
        help="Plane of the slices. NIfTI volumes are sliced in this plane; DICOM series of other planes are "
        "skipped. Default: the plane of acquisition."
    ),
]
PatientRegex = Annotated[
    str | None,
    typer.Option(
        help="Regular expression with one group, searched in the path of each file below DATA. The text of "
        "the group identifies the patient. Example: '(Case[0-9]+)_'."
    ),
]
Series = Annotated[
    str | None,
    typer.Option(
        help="Use only images that match this regular expression (case-insensitive). It is "
        "searched in the description and UID of a DICOM series, the channel of an nnU-Net file, and the "
        "entities and suffix of a BIDS file."
    ),
]
PixelSize = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--pixel-mm",
        metavar="ROW COLUMN",
        help="Distance between rows and between columns of PNG and TIFF files, in mm.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        help="How to get the path of a mask from that of its image. `_t2=_prostate` replaces `_t2` by "
        "`_prostate`; text without `=`, such as `_seg`, is appended to the name."
    ),
]
Recipe = Annotated[
    str, typer.Option(help="demo, compact, detail, generate or comp3710; or the path of a YAML file.")
]
TrainingSeed = Annotated[
    int | None, typer.Option(min=0, help="Random seed of the training. Default: the seed in the recipe.")
]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda (NVIDIA GPU) or mps (Apple GPU). auto uses a GPU if there is one."),
]
Precision = Annotated[
    str,
    typer.Option(
        help="32-true (float32), bf16-mixed, 16-mixed (cuda only) or auto. On a CPU, auto measures whether "
        "32-true or bf16-mixed is faster; on a GPU it uses bf16-mixed if the hardware supports it."
    ),
]
SamplingPrecision = Annotated[
    str,
    typer.Option(
        help="Precision of sampling: 32-true, bf16-mixed, 16-mixed (cuda only) or auto, as in training. "
        "The same seed gives different samples at a different precision."
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Number of processes that load data; 0 loads data in the main process.")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def out_option(metavar: str, text: str) -> Any:
    """Return the option that names a command's output."""
    return typer.Option("-o", "--out", metavar=metavar, help=text)


def say(line: str) -> None:
    """Print a message that is not a result, on stderr."""
    typer.echo(line, err=True)


def counter(what: str) -> Progress:
    """Return the progress line of units of this name."""
    return ProgressLine(what)


def show(record: object, rows: Iterable[Sequence[object]], as_json: bool) -> None:
    """Print a result: the record as JSON, or its rows as a table."""
    typer.echo(text.to_json(record) if as_json else text.table(rows))

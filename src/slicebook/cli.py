"""The command line: each command a sentence over one function. Imports nothing heavy until a command runs."""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slicebook import __version__, text
from slicebook.errors import SlicebookError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone takes longer to import than all of this
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Research software, not a medical device.",
)
train = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train, name="train", help="Train a model on a prepared folder.")

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
    Literal["hipmri2d", "nifti", "dicom"] | None, typer.Option(help="Recognised when not given.")
]
Plane = Annotated[
    Literal["axial", "sagittal", "coronal"] | None, typer.Option(help="The acquired one when not given.")
]
PatientRegex = Annotated[
    str | None, typer.Option(help="Searched in each path; its one group is the patient. Never guessed.")
]
Mask = Annotated[
    str | None, typer.Option(help="Where an image's mask is: _t2=_prostate replaces, _seg adds to the name.")
]
Recipe = Annotated[str, typer.Option(help="Name of a recipe, or a YAML file.")]
TrainingSeed = Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, 32-true or bf16-mixed.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read slices ahead; 0: none.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: What stands after `slicebook` on the line; that of this process by default.

    Returns:
        0 when all went well; 1 when there is something for the user to mend, said in one line on stderr; 2
        for a line that is no command. A bug ends in a traceback, and with `--debug` so does everything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(args=[word for word in words if word != "--debug"], prog_name="slicebook")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (SlicebookError, OSError) as error:
        if "--debug" in words:
            raise
        typer.echo(f"slicebook: {' '.join(str(error).split())}", err=True)
        return 1
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Say a warning as the rest is said, without the line of our source it came from."""
    _say(f"warning: {message}")


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"slicebook {__version__}")
        raise typer.Exit


@app.callback()
def slicebook(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of any error.")] = False,
) -> None:
    """Learn a book of codes for medical image slices, and say how good it is."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all it makes.")] = Path(
        "slicebook-demo"
    ),
    recipe: Recipe = "demo",
    seed: TrainingSeed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show it all on phantom patients, in eight minutes. Run again, it goes on where it stopped."""
    from slicebook.demo import run_demo

    chosen = _recipe(recipe, [], seed)
    summary = run_demo(out, chosen, device=device, say=_say)
    _print(summary, summary.evaluation.table(), as_json)
    _say(f"{summary.seconds:.0f} seconds; all of it is in {out}. See slicebook info {out}")


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    layout: Annotated[
        Literal["hipmri2d", "volumes"], typer.Option(help="Slices in the HipMRI folders, or whole volumes.")
    ] = "hipmri2d",
    patients: Annotated[
        tuple[int, int, int], typer.Option(metavar="TRAIN VALIDATION TEST", help="How many of each.")
    ] = (6, 2, 2),
    weeks: Annotated[int, typer.Option(min=1, help="Volumes a patient.")] = 1,
    slices: Annotated[int, typer.Option(min=4, help="Slices a volume.")] = 60,
    size: Annotated[
        tuple[int, int], typer.Option(metavar="ROWS COLUMNS", help="Pixels of a slice, as displayed.")
    ] = (128, 256),
    seed: Seed = 42,
) -> None:
    """Write a data set of procedural pelvises. No patient is in it."""
    from slicebook import phantom as pelvis

    rows, columns = size
    shape = (columns, rows)  # as NIfTI stores them: left-right first
    count = _progress("volume")
    if layout == "hipmri2d":
        pelvis.write_hipmri(
            out, patients=patients, weeks=weeks, slices=slices, seed=seed, shape=shape, progress=count
        )
    else:
        pelvis.write_volumes(
            out, patients=sum(patients), weeks=weeks, slices=slices, seed=seed, shape=shape, progress=count
        )


@app.command()
def check(
    data: Data,
    layout: Layout = None,
    plane: Plane = None,
    patient_regex: PatientRegex = None,
    mask: Mask = None,
    as_json: Json = False,
) -> None:
    """Report on a folder of volumes. Exits with 1 when a file cannot be read or used."""
    from slicebook import checking
    from slicebook.layouts import SourceOptions

    report = checking.check(
        data, SourceOptions(layout, plane, patient_regex, mask), progress=_progress("volume")
    )
    _print(report, report.rows(), as_json)
    if report.unreadable or report.misfits:
        raise typer.Exit(1)


@app.command()
def prepare(
    data: Data,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write, for training and evaluation to read.")
    ],
    layout: Layout = None,
    plane: Plane = None,
    patient_regex: PatientRegex = None,
    mask: Mask = None,
    spacing: Annotated[float | None, typer.Option(help="Resample in-plane to this many mm.")] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="ROWS COLUMNS", help="Crop or pad centrally to this.")
    ] = None,
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="TRAIN VALIDATION TEST",
            help="Shares of the patients; the layout's own split when not given, else 0.7 0.15 0.15.",
        ),
    ] = None,
    class_regex: Annotated[
        str | None,
        typer.Option(help="Searched in each path; its one group is the class, a condition to generate by."),
    ] = None,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Split volumes by patient and cache their slices."""
    from slicebook import preparation
    from slicebook.layouts import SourceOptions

    summary = preparation.prepare(
        data,
        out,
        SourceOptions(layout, plane, patient_regex, mask),
        preparation.PrepareOptions(
            spacing=spacing, size=size, fractions=fractions, seed=seed, class_regex=class_regex
        ),
        progress=_progress("volume"),
    )
    for path, reason in summary.quarantined:
        _say(f"left out: {reason if path in reason else f'{path}: {reason}'}")
    for path in summary.unmatched:
        _say(f"left out: {path}: its name fits neither the layout nor --patient-regex")
    header = ("", "patients", "volumes", "slices", "blank")
    counts = [
        (split, one.patients, one.volumes, one.slices, one.blank)
        for split, one in summary.info.counts.items()
    ]
    _print(summary, [header, *counts], as_json)


@train.command("tokenizer")
def train_tokenizer(
    data: Prepared,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings over the recipe's.")
    ] = None,
    recipe: Recipe = "compact",
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; runs/RECIPE by default.")
    ] = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Train a tokenizer. Run again, it goes on where it stopped."""
    from slicebook import training

    chosen = _recipe(recipe, settings or [], seed)
    summary = training.train_tokenizer(
        data,
        chosen,
        out or Path("runs") / chosen.name,
        device=device,
        precision=precision,
        workers=workers,
    )
    _print(summary, text.to_rows(summary), as_json)


@train.command("prior")
def train_prior(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a tokenizer's run, or of a demo.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Over the recipe's: prior.… and labels.… alone."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="RUN/prior by default.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="The prepared folder, when it was moved.")
    ] = None,
    masks: Annotated[bool, typer.Option(help="Learn the label masks too, where there are any.")] = True,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Train a prior on the tokens of a trained tokenizer, to generate with. Run again, it goes on."""
    from slicebook import prior_training

    summary = prior_training.train_prior(
        run, settings or [], out=out, data=data, masks=masks, device=device, precision=precision
    )
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def generate(
    model: PriorModel,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the data set.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of sample 0; sample i is drawn from seed + i.")] = 0,
    position: Annotated[
        float | None, typer.Option(help="Place in the volume, 0 to 1; any, when not given.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--class", help="One of the manifest's classes; any, when not given.")
    ] = None,
    conditional: Annotated[bool, typer.Option(help="Tell the prior anything at all.")] = True,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="ROWS COLUMNS", help="The usual one when not given.")
    ] = None,
    temperature: Temperature = 1.0,
    fine_temperature: FineTemperature = 0.9,
    top_p: TopP = 0.98,
    guidance: Guidance = 0.0,
    grain: Annotated[bool, typer.Option(help="Put noise like the training set's back.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw new slices with their masks, as a data set of its own."""
    from slicebook import generating
    from slicebook.sampling import SamplingSettings

    summary = generating.generate(
        model,
        out,
        count=count,
        seed=seed,
        position=position,
        group=group,
        conditional=conditional,
        size=size,
        settings=SamplingSettings(temperature, fine_temperature, top_p, guidance),
        grain=grain,
        device=device,
        progress=_progress("sample"),
    )
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def inpaint(
    model: PriorModel,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="NIfTI or DICOM volume, or one slice.")],
    mask: Annotated[Path, typer.Option(metavar="MASK", help="NIfTI on the same grid; 0 outside the region.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the redrawn volumes.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Drawings of the region.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing 0; drawing i hangs on seed + i.")] = 0,
    temperature: Temperature = 1.0,
    fine_temperature: FineTemperature = 0.9,
    top_p: TopP = 0.98,
    guidance: Guidance = 0.0,
    plane: Plane = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Redraw a region of a volume. Every pixel outside it stays as it was."""
    from slicebook import inpainting
    from slicebook.sampling import SamplingSettings

    summary = inpainting.inpaint(
        model,
        image,
        mask,
        out,
        count=count,
        seed=seed,
        settings=SamplingSettings(temperature, fine_temperature, top_p, guidance),
        plane=plane,
        device=device,
        progress=_progress("slice"),
    )
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def anomaly(
    model: PriorModel,
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the maps, tables and pictures.")],
    orders: Annotated[int, typer.Option(min=1, help="Orders of drawing to average over.")] = 8,
    seed: Seed = 0,
    plane: Plane = None,
    pictures: Annotated[bool, typer.Option(help="Write slice | map as PNG.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Map how unlikely each part of a volume is under a prior."""
    from slicebook import anomalies

    summary = anomalies.anomaly(
        model,
        source,
        out,
        orders=orders,
        seed=seed,
        plane=plane,
        pictures=pictures,
        device=device,
        progress=_progress("slice"),
    )
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a tokenizer's run, or of a demo.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="The prepared folder, when it was moved.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the pictures.")] = None,
    overfit_seconds: Annotated[
        float, typer.Option(min=0, help="For a fresh prior to learn 32 slices by heart; 0 leaves it out.")
    ] = 60,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tell early whether generation will work: eight numbers, with RUN/prior or, but for some, without."""
    from slicebook import diagnose as diagnosing

    found = diagnosing.diagnose(
        run, data=data, out=out, overfit_seconds=overfit_seconds, device=device, seed=seed, say=_say
    )
    _print(found, found.table(), as_json)


@app.command()
def reconstruct(
    model: Model,
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the NIfTI and the picture pairs.")],
    plane: Plane = None,
    pictures: Annotated[bool, typer.Option(help="Write original | reconstruction as PNG.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Send a volume through a model. Its geometry and intensity scale are kept."""
    from slicebook import inference

    summary = inference.reconstruct(model, source, out, device=device, pictures=pictures, plane=plane)
    names = (
        "name",
        "slices",
        "ssim_whole",
        "ssim_foreground",
        "psnr_whole",
        "bits_per_pixel",
        "clipping_mae",
    )
    _print(summary, text.columns(summary.volumes, names), as_json)


@app.command()
def encode(
    model: Model,
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Token file to write, .npz.")],
    plane: Plane = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the tokens of a volume. The file holds all that decoding needs but the model."""
    from slicebook import inference

    summary = inference.encode(model, source, out, device=device, plane=plane)
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def decode(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Token file that `slicebook encode` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Volume to write, .nii.gz.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the volume that a token file stands for."""
    from slicebook import inference

    summary = inference.decode(model, source, out, device=device)
    _print(summary, text.to_rows(summary), as_json)


@app.command()
def evaluate(
    model: Model,
    data: Prepared,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report, tables and pictures.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Validation selects; test is scored once.")
    ] = "test",
    codecs: Annotated[
        bool, typer.Option("--codecs", help="JPEG 2000 and JPEG XL at the same bits (extra `codecs`).")
    ] = False,
    device: Device = "auto",
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Score a model on patients it never saw."""
    from slicebook.checkpoint import load_tokenizer
    from slicebook.dataset import PreparedData
    from slicebook.devices import choose_device
    from slicebook.evaluate import evaluate as score

    loaded, prepared = load_tokenizer(model), PreparedData.open(data)
    report = score(loaded, prepared, out, split=split, codecs=codecs, device=choose_device(device), seed=seed)
    for warning in report.warnings:
        _say(f"warning: {warning}")
    _print(report, report.table(), as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model, run, demo or prepared folder.")],
    as_json: Json = False,
) -> None:
    """Say what a model or prepared folder is made of."""
    if (path / "dataset.json").is_file():
        from slicebook.dataset import PreparedData

        found: object = PreparedData.open(path).info
    else:
        from slicebook.checkpoint import load_tokenizer

        found = load_tokenizer(path).info
    _print(found, text.to_rows(found), as_json)


def _recipe(name: str, settings: Sequence[str], seed: int | None) -> Any:
    from slicebook.config import load_recipe

    return load_recipe(name, [*settings, *([] if seed is None else [f"training.seed={seed}"])])


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _progress(what: str) -> Callable[[int, int], None] | None:
    """Return a counter for a person's screen; None where nobody watches."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: typer.echo(f"\r{what} {done} of {total}", nl=done == total, err=True)


def _print(record: object, rows: Iterable[Sequence[object]], as_json: bool) -> None:
    """Print a result: the record as JSON, or its rows as a table."""
    typer.echo(text.to_json(record) if as_json else text.table(rows))

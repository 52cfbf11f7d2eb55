"""Commands that use a tokenizer, show a model, or run the demo."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal

import typer

from slicebook import text
from slicebook.cli.options import (
    Device,
    Json,
    Model,
    Plane,
    Recipe,
    Refine,
    Source,
    TrainingSeed,
    counter,
    out_option,
    say,
    show,
)
from slicebook.signals import raised_signals


@raised_signals()
def reconstruct(
    model: Model,
    source: Source,
    out: Annotated[Path, out_option("DIR", "Folder for the volumes, scores and pictures.")],
    plane: Plane = None,
    pictures: Annotated[
        bool, typer.Option(help="Also write each slice beside its reconstruction as PNG.")
    ] = True,
    file_format: Annotated[
        Literal["nifti", "dicom"],
        typer.Option(
            "--format",
            help="dicom: also write each reconstruction of a DICOM series as a derived series of its study, "
            "with the identity of its patient, marked as lossy.",
        ),
    ] = "nifti",
    refine: Refine = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encode and decode volumes, and score the reconstructions.

    Reconstructed volumes have the affine and the intensity units of the input. An interrupted command goes on
    after the last volume; a volume that is done is not done again unless it, the model or an option changed.
    """
    from slicebook.inference import reconstruct as inference

    derived = []
    if file_format == "dicom":
        from slicebook.export.derived import check_derivable

        derived = check_derivable(source, plane)
    summary = inference.reconstruct(
        model,
        source,
        out,
        device=device,
        pictures=pictures,
        plane=plane,
        refine=refine,
        progress=counter("volume"),
    )
    if derived:
        from slicebook.export.derived import Codec, write_derived
        from slicebook.models.checkpoint import read_info

        sha256 = read_info(model).weights_sha256
        for (name, series), volume in zip(derived, summary.volumes, strict=True):
            write_derived(name, series, out, Codec(sha256, volume.bits_per_pixel))
    names = (
        "name",
        "slices",
        "ssim_whole",
        "ssim_foreground",
        "psnr_whole",
        "bits_per_pixel",
        "clipping_mae",
    )
    show(summary, text.columns(summary.volumes, names), as_json)


@raised_signals()
def encode(
    model: Model,
    source: Source,
    out: Annotated[
        Path, out_option("FILE.safetensors", "Token file to write; for a folder of volumes, a folder.")
    ],
    plane: Plane = None,
    refine: Refine = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encode a volume into a token file. Decoding needs this file and the model.

    If IN is a folder and --out does not end in .safetensors, each volume is encoded into a file in this
    folder. An interrupted command goes on after the last volume.
    """
    from slicebook.inference import reconstruct as inference

    if source.is_dir() and out.suffix != ".safetensors":
        summaries = inference.encode_folder(
            model, source, out, device=device, plane=plane, refine=refine, progress=counter("volume")
        )
        names = ("output", "slices", "grids", "bits_per_pixel")
        show(summaries, text.columns(summaries, names), as_json)
        return
    summary = inference.encode(model, source, out, device=device, plane=plane, refine=refine)
    show(summary, text.to_rows(summary), as_json)


def decode(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Token file written by `slicebook encode`.")],
    out: Annotated[Path, out_option("FILE.nii.gz", "Volume to write.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Decode a token file into a volume."""
    from slicebook.inference import reconstruct as inference

    summary = inference.decode(model, source, out, device=device)
    show(summary, text.to_rows(summary), as_json)


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Model file, run folder, demo folder or prepared folder.")
    ],
    as_json: Json = False,
) -> None:
    """Show the settings, data and versions of a model.

    For a prepared folder, show how it was prepared and its number of slices.
    """
    if (path / "dataset.json").is_file():
        from slicebook.data.dataset import PreparedData

        model: object = PreparedData.open(path).info
    else:
        from slicebook.models.checkpoint import read_info

        model = read_info(path)
    show(model, text.to_rows(model), as_json)


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print the card of this starter instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the starters: models that come with Slicebook, trained on synthetic images only.

    Scores are measured on real patients; no starter was trained on patient data.
    """
    from slicebook import starters

    if name is not None:
        starters.locate(starters.PREFIX + name.removeprefix(starters.PREFIX))  # refuses an unknown name
        typer.echo(starters.read_card(name.removeprefix(starters.PREFIX)))
        return
    facts = {starters.PREFIX + known: starters.read_facts(known) for known in starters.starter_names()}
    names = (
        "name",
        "ssim_whole",
        "ssim_foreground",
        "psnr_whole",
        "bits_per_pixel",
        "trained_on",
        "scored_on",
    )
    rows = [SimpleNamespace(name=key, **record.model_dump()) for key, record in facts.items()]
    show({key: record.model_dump() for key, record in facts.items()}, text.columns(rows, names), as_json)


def demo(
    out: Annotated[Path, out_option("DIR", "Folder for all outputs.")] = Path("slicebook-demo"),
    recipe: Recipe = "demo",
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train from random weights, not from starter:generate."),
    ] = False,
    seed: TrainingSeed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run all steps on phantom patients.

    Takes about six minutes on two cores, and about 50 with --from-scratch. If the demo is interrupted, the
    same command resumes it.
    """
    from slicebook.cli.demo import FROM_SCRATCH, STARTER, run_demo
    from slicebook.recipes import load_recipe

    settings = [*(FROM_SCRATCH if from_scratch else ()), *([] if seed is None else [f"training.seed={seed}"])]
    start = None if from_scratch else STARTER
    summary = run_demo(out, load_recipe(recipe, settings), start_from=start, device=device, say=say)
    show(summary, summary.evaluation.table(), as_json)

"""Commands of a tokenizer: train it, use it, judge it."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook import text
from slicebook.cli.options import (
    Device,
    Json,
    Model,
    Plane,
    Precision,
    Prepared,
    Recipe,
    Source,
    TrainingSeed,
    Workers,
    read_recipe,
    say,
    show,
)


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
    from slicebook.training import tokenizer

    chosen = read_recipe(recipe, settings or [], seed)
    summary = tokenizer.train_tokenizer(
        data,
        chosen,
        out or Path("runs") / chosen.name,
        device=device,
        precision=precision,
        workers=workers,
    )
    show(summary, text.to_rows(summary), as_json)


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
    from slicebook.inference import reconstruct as inference

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
    show(summary, text.columns(summary.volumes, names), as_json)


def encode(
    model: Model,
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Token file to write, .safetensors.")],
    plane: Plane = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the tokens of a volume. The file holds all that decoding needs but the model."""
    from slicebook.inference import reconstruct as inference

    summary = inference.encode(model, source, out, device=device, plane=plane)
    show(summary, text.to_rows(summary), as_json)


def decode(
    model: Model,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Token file that `slicebook encode` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Volume to write, .nii.gz.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the volume that a token file stands for."""
    from slicebook.inference import reconstruct as inference

    summary = inference.decode(model, source, out, device=device)
    show(summary, text.to_rows(summary), as_json)


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model, run, demo or prepared folder.")],
    as_json: Json = False,
) -> None:
    """Show what a model file of any kind, or a prepared folder, is and is made of."""
    if (path / "dataset.json").is_file():
        from slicebook.data.dataset import PreparedData

        found: object = PreparedData.open(path).info
    else:
        from slicebook.models.checkpoint import read_info

        found = read_info(path)
    show(found, text.to_rows(found), as_json)


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
    from slicebook.cli.demo import run_demo

    chosen = read_recipe(recipe, [], seed)
    summary = run_demo(out, chosen, device=device, say=say)
    show(summary, summary.evaluation.table(), as_json)
    say(f"{summary.seconds:.0f} seconds; all of it is in {out}. See slicebook info {out}")

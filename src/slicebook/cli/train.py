"""Commands that train: a tokenizer, and over it the parts of a generator."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook import text
from slicebook.cli.options import (
    Device,
    Json,
    Precision,
    Prepared,
    Recipe,
    TrainingSeed,
    Workers,
    out_option,
    read_recipe,
    show,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a tokenizer's training run, or of a demo.")
]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace those of the recipe.")
]
Out = Annotated[Path | None, out_option("DIR", "Folder of the generator; RUN/prior by default.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATA", help="The prepared folder, if it was moved."),
]
Masks = Annotated[bool, typer.Option(help="Model label masks too, if the data have them.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Delete the files of an earlier training and start anew.")
]


@app.command("tokenizer")
def train_tokenizer(
    data: Prepared,
    settings: Settings = None,
    recipe: Recipe = "compact",
    out: Annotated[Path | None, out_option("RUN", "Run folder; runs/RECIPE by default.")] = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train a tokenizer on a prepared folder. The same command resumes an interrupted training."""
    from slicebook.training import tokenizer

    chosen = read_recipe(recipe, settings or [], seed)
    summary = tokenizer.train_tokenizer(
        data,
        chosen,
        out or Path("runs") / chosen.name,
        device=device,
        precision=precision,
        workers=workers,
        restart=restart,
    )
    show(summary, text.to_rows(summary), as_json)


@app.command("masks")
def train_masks(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train the tokenizer of label masks. Takes settings labels.…; the same command resumes."""
    from slicebook.training import generator

    summary = generator.train_masks(
        run,
        settings or [],
        out=out,
        data=data,
        seed=seed,
        restart=restart,
        device=device,
        precision=precision,
        workers=workers,
    )
    show(summary, text.to_rows(summary), as_json)


@app.command("prior")
def train_prior(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    masks: Masks = True,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train the prior over tokens. Takes settings prior.…; the same command resumes."""
    from slicebook.training import generator

    summary = generator.train_prior(
        run,
        settings or [],
        out=out,
        data=data,
        masks=masks,
        seed=seed,
        restart=restart,
        device=device,
        precision=precision,
    )
    show(summary, text.to_rows(summary), as_json)


@app.command("decoder")
def train_decoder(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train the decoder of a finished prior. Takes settings decoder.…; the same command resumes."""
    from slicebook.training import generator

    summary = generator.train_decoder(
        run,
        settings or [],
        out=out,
        data=data,
        seed=seed,
        restart=restart,
        device=device,
        precision=precision,
    )
    show(summary, text.to_rows(summary), as_json)


@app.command("generator")
def train_generator(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    masks: Masks = True,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Train masks, prior and decoder in turn. The same command resumes."""
    from slicebook.training import generator

    summary = generator.train_generator(
        run,
        settings or [],
        out=out,
        data=data,
        masks=masks,
        seed=seed,
        restart=restart,
        device=device,
        precision=precision,
        workers=workers,
    )
    show(summary, text.to_rows(summary), as_json)

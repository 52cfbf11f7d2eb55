"""Commands that train: a tokenizer, and over it the parts of a generator."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    show,
)

if TYPE_CHECKING:
    from slicebook.training.run import TrainingOptions

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


def _shared(
    *,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    restart: Restart = False,
    as_json: Json = False,
) -> None:
    """Declare the options that all trainings share."""


def training(function: Callable[..., object]) -> Callable[..., None]:
    """Give a command the shared options, as one record `options`, and print the summary that it returns."""
    own = [item for item in inspect.signature(function).parameters.values() if item.name != "options"]
    shared = inspect.signature(_shared).parameters.values()

    def command(*, as_json: bool, **arguments: Any) -> None:
        from slicebook.training.run import TrainingOptions

        record = {item.name: arguments.pop(item.name) for item in shared if item.name in arguments}
        summary = function(**arguments, options=TrainingOptions(**record))
        show(summary, text.to_rows(summary), as_json)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # typer reads it
    command.__annotations__ = {item.name: item.annotation for item in (*own, *shared)}
    return command


@app.command("tokenizer")
@training
def train_tokenizer(
    data: Prepared,
    settings: Settings = None,
    recipe: Recipe = "compact",
    out: Annotated[Path | None, out_option("RUN", "Run folder; runs/RECIPE by default.")] = None,
    *,
    options: "TrainingOptions",
) -> object:
    """Train a tokenizer on a prepared folder. The same command resumes an interrupted training."""
    from slicebook.recipes import load_recipe
    from slicebook.training import tokenizer

    chosen = load_recipe(recipe, settings or [])
    return tokenizer.train_tokenizer(data, chosen, out or Path("runs") / chosen.name, options)


@app.command("masks")
@training
def train_masks(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    *,
    options: "TrainingOptions",
) -> object:
    """Train the tokenizer of label masks. Takes settings labels.…; the same command resumes."""
    from slicebook.training import generator

    return generator.train_masks(run, settings or [], out=out, data=data, options=options)


@app.command("prior")
@training
def train_prior(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    masks: Masks = True,
    *,
    options: "TrainingOptions",
) -> object:
    """Train the prior over tokens. Takes settings prior.…; the same command resumes."""
    from slicebook.training import generator

    return generator.train_prior(run, settings or [], out=out, data=data, masks=masks, options=options)


@app.command("decoder")
@training
def train_decoder(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    *,
    options: "TrainingOptions",
) -> object:
    """Train the decoder of a finished prior. Takes settings decoder.…; the same command resumes."""
    from slicebook.training import generator

    return generator.train_decoder(run, settings or [], out=out, data=data, options=options)


@app.command("generator")
@training
def train_generator(
    run: Run,
    settings: Settings = None,
    data: DataOption = None,
    out: Out = None,
    masks: Masks = True,
    *,
    options: "TrainingOptions",
) -> object:
    """Train masks, prior and decoder in turn. The same command resumes."""
    from slicebook.training import generator

    return generator.train_generator(run, settings or [], out=out, data=data, masks=masks, options=options)

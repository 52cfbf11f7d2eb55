"""Commands that train a tokenizer and the three models of a generator: mask tokenizer, prior, decoder."""

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
from slicebook.signals import raised_signals

if TYPE_CHECKING:
    from slicebook.training.run import TrainingOptions

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder of a trained tokenizer, or a demo folder.")
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the recipe; see the description above."),
]
Out = Annotated[Path | None, out_option("DIR", "Output folder. Default: RUN/prior.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Prepared folder; needed only if it was moved after the tokenizer was trained.",
    ),
]
Masks = Annotated[
    bool, typer.Option(help="Model label masks together with the images, if the data contain masks.")
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Delete the files of an earlier training in this folder and train from the beginning.",
    ),
]

StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Model whose weights to start from, as far as their shapes fit. Default: random weights.",
    ),
]


def _shared(
    *,
    seed: TrainingSeed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 0,
    restart: Restart = False,
    start_from: StartFrom = None,
    as_json: Json = False,
) -> None:
    """Declare the options that all trainings share."""


def training(function: Callable[..., object]) -> Callable[..., None]:
    """Give a command the shared options, as one record `options`, and print the summary that it returns."""
    own = [item for item in inspect.signature(function).parameters.values() if item.name != "options"]
    shared = inspect.signature(_shared).parameters.values()

    def command(*, as_json: bool, **arguments: Any) -> None:
        with raised_signals():
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
    out: Annotated[Path | None, out_option("RUN", "Output folder. Default: runs/RECIPE.")] = None,
    *,
    options: "TrainingOptions",
) -> object:
    """Train a tokenizer on a prepared folder.

    KEY=VALUE overrides any setting of the recipe, for example training.epochs=20. If the training is
    interrupted, the same command resumes it.
    """
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
    """Train the tokenizer of the label masks.

    KEY=VALUE overrides settings that start with `labels.`, for example labels.training.epochs=20. If the
    training is interrupted, the same command resumes it.
    """
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
    """Train the prior, a flow over image and mask tokens.

    If the data contain masks, train the mask tokenizer first (`train masks`).

    KEY=VALUE overrides settings that start with `prior.`, for example prior.training.epochs=20. If the
    training is interrupted, the same command resumes it.
    """
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
    """Train the generation decoder, which sharpens generated slices.

    It is a copy of the tokenizer's decoder. It is trained further with a patch discriminator, on the tokens
    of training slices and of generated slices. Train the prior first (`train prior`).

    KEY=VALUE overrides settings that start with `decoder.`, for example decoder.training.epochs=20. If the
    training is interrupted, the same command resumes it.
    """
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
    """Train the mask tokenizer, the prior and the generation decoder.

    Runs `train masks` (if the data contain masks), `train prior` and `train decoder` in this order.

    KEY=VALUE overrides settings that start with `labels.`, `prior.` or `decoder.`. If the training is
    interrupted, the same command resumes it.
    """
    from slicebook.training import generator

    return generator.train_generator(run, settings or [], out=out, data=data, masks=masks, options=options)

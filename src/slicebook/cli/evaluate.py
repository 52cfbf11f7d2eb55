"""Commands that judge a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slicebook.cli.options import (
    Device,
    FineTemperature,
    Guidance,
    Json,
    Model,
    Prepared,
    Seed,
    Temperature,
    TopP,
    counter,
    say,
    show,
)
from slicebook.errors import ConfigError, DataError


def evaluate(
    model: Model,
    data: Prepared,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report, tables and pictures.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="fidelity, generation, audit or usefulness, repeated for more; all that the model allows, "
            "when not given."
        ),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Validation selects; test is used once.")
    ] = "test",
    codecs: Annotated[
        bool | None,
        typer.Option(help="JPEG 2000 and JPEG XL beside it; where they are installed, when not given."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("-n", min=2, help="Samples; about as many as real slices, when not given.")
    ] = None,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    noise: Annotated[bool, typer.Option(help="Put noise like the training set's back.")] = True,
    device: Device = "auto",
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Judge a model on patients it never saw: is it faithful, does it generate, does it copy?"""
    from slicebook.data.dataset import PreparedData
    from slicebook.devices import choose_device
    from slicebook.evaluation.evaluate import evaluate as judge
    from slicebook.models.checkpoint import find_model
    from slicebook.models.sampling import SamplingSettings
    from slicebook.reporting.html import write_page
    from slicebook.reporting.model_card import CARD_NAME, write_card

    find_model(model)  # what is missing first is said first
    report = judge(
        model,
        PreparedData.open(data),
        out,
        parts=only,
        split=split,
        codecs=codecs,
        samples=samples,
        settings=SamplingSettings(temperature, fine_temperature, top_p, guidance),
        noise=noise,
        device=choose_device(device),
        seed=seed,
        say=say,
        progress=counter("sample"),
    )
    page = write_page(out)
    if (out / CARD_NAME).is_file():  # of an earlier evaluation: nothing old stands beside a new report
        try:
            write_card(out)
        except ConfigError as error:
            say(f"warning: the card is of an earlier report. {error}")
    for warning in report.warnings:
        say(f"warning: {warning}")
    say(f"page: {page}")
    show(report, report.table(), as_json)
    missing = [part for part in only or () if part in report.skipped]
    if missing:
        reasons = "; ".join(f"{part}: {report.skipped[part]}" for part in missing)
        raise DataError(f"{out}: not all could be judged. {reasons}")

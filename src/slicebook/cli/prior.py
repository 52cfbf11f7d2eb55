"""Commands of a prior: train it, draw with it, ask it."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook import text
from slicebook.cli.options import (
    Device,
    FineTemperature,
    Guidance,
    Json,
    Plane,
    Precision,
    PriorModel,
    Seed,
    Source,
    Temperature,
    TopP,
    counter,
    say,
    show,
)


def train_prior(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a tokenizer's run, or of a demo.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Over the recipe's: labels.…, prior.… and decoder.… alone."),
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
    """Train what generates: the masks' tokenizer, a prior, a decoder. Run again, it goes on."""
    from slicebook.training import generator

    summary = generator.train_prior(
        run, settings or [], out=out, data=data, masks=masks, device=device, precision=precision
    )
    show(summary, text.to_rows(summary), as_json)


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
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    noise: Annotated[bool, typer.Option(help="Put noise like the training set's back.")] = True,
    share: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            help="Folder of an evaluation. Refuses unless its audit of this model is valid and found no "
            "copies; its summary goes beside the samples.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw new slices with their masks, as a data set of its own."""
    from slicebook.inference import generate as generating
    from slicebook.models.sampling import SamplingSettings
    from slicebook.reporting.release import release_check

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
        noise=noise,
        clear=None if share is None else release_check(share),
        device=device,
        progress=counter("sample"),
    )
    if share is None:
        say("not audited here: a sample may copy a patient; to share samples, audit first (--share REPORT)")
    show(summary, text.to_rows(summary), as_json)


def inpaint(
    model: PriorModel,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="NIfTI or DICOM volume, or one slice.")],
    mask: Annotated[Path, typer.Option(metavar="MASK", help="NIfTI on the same grid; 0 outside the region.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the redrawn volumes.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Drawings of the region.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing 0; drawing i hangs on seed + i.")] = 0,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    plane: Plane = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Redraw a region of a volume, as noisy as the rest. Every pixel outside it stays as it was."""
    from slicebook.inference import inpaint as inpainting
    from slicebook.models.sampling import SamplingSettings

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
        progress=counter("slice"),
    )
    show(summary, text.to_rows(summary), as_json)


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
    from slicebook.inference import anomaly as anomalies

    summary = anomalies.anomaly(
        model,
        source,
        out,
        orders=orders,
        seed=seed,
        plane=plane,
        pictures=pictures,
        device=device,
        progress=counter("slice"),
    )
    show(summary, text.to_rows(summary), as_json)

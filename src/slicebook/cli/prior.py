"""Commands that use a prior: generate, inpaint, anomaly."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook import text
from slicebook.cli.options import (
    Device,
    FineTemperature,
    Guidance,
    Json,
    Noise,
    Plane,
    Precision,
    PriorModel,
    Seed,
    Source,
    Temperature,
    TopP,
    counter,
    out_option,
    say,
    show,
)


def generate(
    model: PriorModel,
    out: Annotated[Path, out_option("DIR", "New folder for the data set.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sample 0; sample i has seed + i.")] = 0,
    position: Annotated[
        float | None, typer.Option(help="Position in the volume, 0 to 1; random by default.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--class", help="Class of the samples; unspecified by default.")
    ] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Sample without position and class conditions.")
    ] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="ROWS COLUMNS", help="Slice size; the most frequent by default."),
    ] = None,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    noise: Noise = True,
    require_audit: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT",
            help="Folder of an evaluation; generate only if its audit of this model is valid and found no "
            "copies, and put the audit summary beside the samples.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Generate synthetic slices with their masks as a data set."""
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
        conditional=not unconditional,
        size=size,
        settings=SamplingSettings(temperature, fine_temperature, top_p, guidance),
        noise=noise,
        release_check=None if require_audit is None else release_check(require_audit),
        device=device,
        precision=precision,
        progress=counter("sample"),
    )
    if require_audit is None:
        say("not audited: a sample may copy a patient; before sharing samples use --require-audit REPORT")
    show(summary, text.to_rows(summary), as_json)


def inpaint(
    model: PriorModel,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="NIfTI or DICOM volume, or a single slice.")],
    mask: Annotated[
        Path, typer.Argument(metavar="MASK", help="NIfTI mask on the same grid, 0 outside the region.")
    ],
    out: Annotated[Path, out_option("DIR", "Folder for the inpainted volumes.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of samples of the region.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sample 0; sample i has seed + i.")] = 0,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    plane: Plane = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Inpaint a region of a volume. Pixels outside the region are not changed."""
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
        precision=precision,
        progress=counter("slice"),
    )
    show(summary, text.to_rows(summary), as_json)


def anomaly(
    model: PriorModel,
    source: Source,
    out: Annotated[Path, out_option("DIR", "Folder for the maps, tables and pictures.")],
    orders: Annotated[int, typer.Option(min=1, help="Number of token orders to average over.")] = 8,
    seed: Seed = 0,
    plane: Plane = None,
    pictures: Annotated[bool, typer.Option(help="Write slice and map side by side as PNG.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Map how unlikely each part of a volume is under the prior."""
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

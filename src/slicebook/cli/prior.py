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
    PriorModel,
    SamplingPrecision,
    Seed,
    Source,
    Temperature,
    TopP,
    counter,
    out_option,
    say,
    show,
)

FirstSeed = Annotated[
    int, typer.Option(min=0, help="Random seed of sample 0; sample i has the seed SEED + i.")
]

Position = Annotated[
    float | None,
    typer.Option(
        help="Position of all slices in the volume, from 0 (first slice) to 1 (last slice). Default: a "
        "random position for each slice."
    ),
]

Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Class of all slices, if the prior was trained with classes. Default: no class is given.",
    ),
]

Size = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="ROWS COLUMNS",
        help="Slice size in pixels; must occur in the training set. Default: its most frequent size.",
    ),
]

RequireAudit = Annotated[
    Path | None,
    typer.Option(
        metavar="REPORT",
        help="Folder of an evaluation of this model. Nothing is generated unless its memorization audit "
        "is valid and found no copies. The audit is stored with the samples.",
    ),
]


def generate(
    model: PriorModel,
    out: Annotated[Path, out_option("DIR", "New folder for the data set.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of slices to generate.")] = 64,
    seed: FirstSeed = 0,
    position: Position = None,
    group: Class = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Sample without the conditions (position and class).")
    ] = False,
    size: Size = None,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    noise: Noise = True,
    require_audit: RequireAudit = None,
    device: Device = "auto",
    precision: SamplingPrecision = "32-true",
    as_json: Json = False,
) -> None:
    """Generate synthetic slices. Label masks are generated too if the prior models them."""
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
        Path,
        typer.Argument(
            metavar="MASK", help="NIfTI mask with the shape and affine of IMAGE; 0 outside the region."
        ),
    ],
    out: Annotated[Path, out_option("DIR", "Folder for the inpainted volumes.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of inpainted volumes to generate.")] = 1,
    seed: FirstSeed = 0,
    temperature: Temperature = 0.9,
    fine_temperature: FineTemperature = 0.8,
    top_p: TopP = 0.95,
    guidance: Guidance = 0.0,
    plane: Plane = None,
    device: Device = "auto",
    precision: SamplingPrecision = "32-true",
    as_json: Json = False,
) -> None:
    """Inpaint a region of a volume. Pixels outside the region do not change."""
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
    out: Annotated[Path, out_option("DIR", "Folder for the maps, scores and pictures.")],
    orders: Annotated[
        int, typer.Option(min=1, help="Number of random token orders; the maps are averaged over them.")
    ] = 8,
    seed: Seed = 0,
    plane: Plane = None,
    pictures: Annotated[bool, typer.Option(help="Also write each slice beside its map as PNG.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Map where a volume is unlikely under the prior.

    The maps contain the negative log-likelihood in nats per pixel.
    """
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

"""Commands that use a prior: generate, inpaint, anomaly."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from slicebook import text
from slicebook.cli.options import (
    DecoderSteps,
    Device,
    Guidance,
    Json,
    Plane,
    PriorModel,
    SamplingPrecision,
    Seed,
    Source,
    Steps,
    counter,
    out_option,
    say,
    show,
)
from slicebook.signals import raised_signals

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


Count = Annotated[
    int | None,
    typer.Option(
        "-n",
        min=1,
        help="Number of slices to generate, or of volumes per mask. Default: 64, or 1 with --masks.",
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="MASKS",
        help="NIfTI label mask, or a folder of them: generate slices for these masks, in their geometry.",
    ),
]
Format = Annotated[
    Literal["nifti", "nnunet", "bids", "dicom", "png"],
    typer.Option(
        "--format",
        help="File format and folder structure of the set. nnunet: a raw data set of nnU-Net; DIR must be "
        "named like Dataset501_Synthetic. bids: a BIDS derivative. dicom: MR images and DICOM SEG. "
        "png: 16-bit images and masks.",
    ),
]
Contrast = Annotated[
    str,
    typer.Option(
        help="Contrast of the images, such as T1w or T2w: the suffix of BIDS files, the channel name "
        "of nnU-Net and part of the DICOM series description."
    ),
]
BodyPart = Annotated[
    str, typer.Option(help="DICOM attribute Body Part Examined, in capitals, such as PROSTATE or BRAIN.")
]
Unconditional = Annotated[
    bool, typer.Option("--unconditional", help="Sample without the conditions (position and class).")
]
NOT_AUDITED = "not audited: a sample may copy a patient; before sharing samples use --require-audit REPORT"


@raised_signals()
def generate(
    model: PriorModel,
    out: Annotated[Path, out_option("DIR", "New folder for the data set.")],
    count: Count = None,
    masks: Masks = None,
    seed: FirstSeed = 0,
    position: Position = None,
    group: Class = None,
    unconditional: Unconditional = False,
    size: Size = None,
    steps: Steps = 16,
    decoder_steps: DecoderSteps = 8,
    guidance: Guidance = 0.0,
    require_audit: RequireAudit = None,
    set_format: Format = "nifti",
    contrast: Contrast = "T2w",
    body_part: BodyPart = "PROSTATE",
    device: Device = "auto",
    precision: SamplingPrecision = "32-true",
    as_json: Json = False,
) -> None:
    """Generate synthetic slices. Label masks are generated too if the prior models them.

    With --masks, the slices show given label masks instead.
    """
    from slicebook.errors import ConfigError
    from slicebook.inference import generate as generating
    from slicebook.inference.from_masks import MaskRequest, generate_for_masks
    from slicebook.models.sampling import SamplingSettings
    from slicebook.reporting.release import release_check

    settings = SamplingSettings(steps, decoder_steps, guidance)
    if masks is not None and (size is not None or unconditional or require_audit is not None):
        raise ConfigError("--masks: goes without --size, --unconditional and --require-audit")

    def draw(folder: Path) -> object:
        if masks is not None:
            request = MaskRequest(count or 1, seed, position, group, None, settings)
            shown = counter("volume")
            return generate_for_masks(
                model, masks, folder, request, device=device, precision=precision, progress=shown
            )
        return generating.generate(
            model,
            folder,
            count=count or 64,
            seed=seed,
            position=position,
            group=group,
            conditional=not unconditional,
            size=size,
            settings=settings,
            release_check=None if require_audit is None else release_check(require_audit),
            device=device,
            precision=precision,
            progress=counter("sample"),
        )

    known_count = None if masks is not None else count or 64
    summary = _write_as(set_format, model, out, draw, (contrast, body_part), known_count)
    if require_audit is None:
        say(NOT_AUDITED)
    show(summary, text.to_rows(summary), as_json)


def _write_as(
    set_format: str,
    model: Path,
    out: Path,
    draw: Callable[[Path], object],
    facts: tuple[str, str],
    count: int | None,
) -> object:
    """Generate a set in a format; what cannot be written is refused before anything is drawn."""
    from slicebook.export import set_formats
    from slicebook.export.generated_set import GeneratedSet, SetFacts
    from slicebook.models.checkpoint import PriorInfo, find_prior, has_prior, read_info

    info = read_info(find_prior(model)) if has_prior(model) else None  # `draw` says what else it is
    names = info.label_names if isinstance(info, PriorInfo) else {}
    described = SetFacts(*facts, label_names=names)
    if set_format == "nifti":
        summary = draw(out)
        set_formats.describe_set(GeneratedSet.read(out, names), out, set_format)
        return summary
    with_masks = isinstance(info, PriorInfo) and info.masks is not None
    set_formats.check_format(set_format, out, with_masks=with_masks, count=count)
    return set_formats.generate_as(set_format, out, draw, described)


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
    steps: Steps = 16,
    decoder_steps: DecoderSteps = 8,
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
        settings=SamplingSettings(steps, decoder_steps, guidance),
        plane=plane,
        device=device,
        precision=precision,
        progress=counter("slice"),
    )
    show(summary, text.to_rows(summary), as_json)


@raised_signals()
def anomaly(
    model: PriorModel,
    source: Source,
    out: Annotated[Path, out_option("DIR", "Folder for the maps, scores and pictures.")],
    draws: Annotated[
        int, typer.Option(min=1, help="Number of draws of the noise; the maps are averaged over them.")
    ] = 4,
    seed: Seed = 0,
    plane: Plane = None,
    pictures: Annotated[bool, typer.Option(help="Also write each slice beside its map as PNG.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Map where a volume is unlikely under the prior.

    The maps contain an upper bound of the negative log-likelihood, in nats per pixel. An interrupted command
    goes on after the last volume; a volume that is done is not done again unless it, the model or an option
    changed.
    """
    from slicebook.inference import anomaly as anomalies

    summary = anomalies.anomaly(
        model,
        source,
        out,
        draws=draws,
        seed=seed,
        plane=plane,
        pictures=pictures,
        device=device,
        progress=counter("volume" if source.is_dir() else "slice"),
    )
    show(summary, text.to_rows(summary), as_json)

"""Commands for data: phantom, check, prepare."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from slicebook.cli.options import (
    Data,
    Json,
    Layout,
    Mask,
    PatientRegex,
    PixelSize,
    Plane,
    Seed,
    Series,
    counter,
    out_option,
    say,
    show,
)
from slicebook.signals import raised_signals

Fractions = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="TRAIN VALIDATION TEST",
        help="Fractions of the patients in each split; they sum to 1. Default: the split that the layout "
        "defines, otherwise 0.7 0.15 0.15.",
    ),
]

ClassRegex = Annotated[
    str | None,
    typer.Option(
        help="Regular expression with one group, searched in the path of each file below DATA. The text "
        "of the group is the class of the slices. It is stored and must not identify a patient."
    ),
]

ReadingWorkers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        help="Number of processes that read volumes; 0 reads in the main process. The result is the same.",
    ),
]

ShowDescriptions = Annotated[
    bool,
    typer.Option(
        "--show-descriptions",
        help="Show the descriptions of DICOM series whole. They may name a patient; by default, words that "
        "are not of a scan protocol are shown as ….",
    ),
]

Randomise = Annotated[
    bool,
    typer.Option(
        "--randomise",
        help="Draw contrast, plane, position, resolution and artefacts at random, and random shapes for "
        "every fourth patient. Models trained on such images work on scans of other contrasts and planes.",
    ),
]


def phantom(
    out: Annotated[Path, out_option("DIR", "New folder for the data set.")],
    layout: Annotated[
        Literal["hipmri2d", "volumes"],
        typer.Option(
            help="hipmri2d: one file per slice, in the folders of the HipMRI study. volumes: one file per "
            "volume."
        ),
    ] = "hipmri2d",
    patients: Annotated[
        tuple[int, int, int],
        typer.Option(metavar="TRAIN VALIDATION TEST", help="Number of patients per split."),
    ] = (6, 2, 2),
    weeks: Annotated[int, typer.Option(min=1, help="Number of volumes per patient.")] = 1,
    slices: Annotated[int, typer.Option(min=4, help="Number of slices per volume.")] = 60,
    size: Annotated[tuple[int, int], typer.Option(metavar="ROWS COLUMNS", help="Slice size in pixels.")] = (
        128,
        256,
    ),
    randomise: Randomise = False,
    seed: Seed = 42,
) -> None:
    """Write a synthetic pelvis MRI data set with label masks. It contains no patient data."""
    from slicebook.phantom import randomized
    from slicebook.phantom import simulator as pelvis

    rows, columns = size
    shared: dict[str, Any] = {
        "weeks": weeks,
        "slices": slices,
        "seed": seed,
        "shape": (columns, rows),  # as NIfTI stores them: left-right first
        "simulate": randomized.random_volume if randomise else pelvis.patient_volume,
        "progress": counter("volume"),
    }
    if layout == "hipmri2d":
        pelvis.write_hipmri(out, patients=patients, **shared)
    else:
        pelvis.write_volumes(out, patients=sum(patients), **shared)


def check(
    data: Data,
    layout: Layout = None,
    plane: Plane = None,
    patient_regex: PatientRegex = None,
    mask: Mask = None,
    series: Series = None,
    pixel_mm: PixelSize = None,
    workers: ReadingWorkers = 0,
    show_descriptions: ShowDescriptions = False,
    as_json: Json = False,
) -> None:
    """List the contents and the problems of a folder of volumes.

    Reads every file and writes nothing. The exit status is 1 if a file cannot be read or used.
    """
    from slicebook.data import check as checking
    from slicebook.data.layouts.sources import SourceOptions

    report = checking.check(
        data,
        SourceOptions(layout, plane, patient_regex, mask, series, pixel_mm),
        workers=workers,
        show_descriptions=show_descriptions,
        progress=counter("volume"),
    )
    show(report, report.rows(), as_json)
    if report.unreadable or report.misfits:
        raise typer.Exit(1)


@raised_signals()
def prepare(
    data: Data,
    out: Annotated[Path, out_option("DIR", "New folder for the prepared slices.")],
    layout: Layout = None,
    plane: Plane = None,
    patient_regex: PatientRegex = None,
    mask: Mask = None,
    series: Series = None,
    pixel_mm: PixelSize = None,
    spacing: Annotated[
        float | None, typer.Option(help="Resample slices to this pixel size in mm. Default: native pixels.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="ROWS COLUMNS",
            help="Crop or pad slices around their centre to this size in pixels. Default: native size.",
        ),
    ] = None,
    fractions: Fractions = None,
    class_regex: ClassRegex = None,
    workers: ReadingWorkers = 0,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Split volumes by patient and store their slices for training.

    An interrupted command goes on where it was if it is repeated.
    """
    from slicebook.data import prepare as preparation
    from slicebook.data.findings import grouped
    from slicebook.data.layouts.sources import SourceOptions

    summary = preparation.prepare(
        data,
        out,
        SourceOptions(layout, plane, patient_regex, mask, series, pixel_mm),
        preparation.PrepareOptions(
            spacing=spacing, size=size, fractions=fractions, seed=seed, class_regex=class_regex
        ),
        workers=workers,
        progress=counter("volume"),
    )
    for line in summary.notes:
        say(f"note: {line}")
    reasons = [reason if path in reason else f"{path}: {reason}" for path, reason in summary.quarantined]
    names = [f"{path}: its name fits neither the layout nor --patient-regex" for path in summary.unmatched]
    for line in grouped([*reasons, *names]):
        say(f"left out: {line}")
    header = ("", "patients", "volumes", "slices", "blank")
    counts = [
        (split, count.patients, count.volumes, count.slices, count.blank)
        for split, count in summary.info.counts.items()
    ]
    show(summary, [header, *counts], as_json)

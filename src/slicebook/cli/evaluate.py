"""The command that evaluates a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slicebook.cli.options import (
    DecoderSteps,
    Device,
    Guidance,
    Json,
    Model,
    Prepared,
    Refine,
    SamplingPrecision,
    Seed,
    Steps,
    counter,
    out_option,
    say,
    show,
)
from slicebook.errors import DataError
from slicebook.signals import raised_signals

Parts = Annotated[
    str | None,
    typer.Option(
        help="Parts to evaluate, separated by commas: reconstruction, generation, memorization (search "
        "for copies of training slices), downstream (train a segmentation network on samples). All parts "
        "but reconstruction need a prior. Default: all that the model allows."
    ),
]

Codecs = Annotated[
    bool | None,
    typer.Option(
        help="Compare with JPEG 2000 and JPEG XL at the same number of bits. Default: on if they are "
        "installed (extra `codecs`)."
    ),
]

Samples = Annotated[
    int | None,
    typer.Option(
        "-n",
        min=2,
        help="Number of slices to generate. Default: the number of real slices in the split, but at "
        "least 100 and at most 540.",
    ),
]


@raised_signals()
def evaluate(
    model: Model,
    data: Prepared,
    out: Annotated[Path, out_option("DIR", "Folder for the report, tables and figures.")],
    parts: Parts = None,
    split: Annotated[
        Literal["train", "validation", "test"],
        typer.Option(help="Patients to evaluate on. Use test patients only once, for the final model."),
    ] = "test",
    codecs: Codecs = None,
    samples: Samples = None,
    refine: Refine = 0,
    steps: Steps = 16,
    decoder_steps: DecoderSteps = 8,
    guidance: Guidance = 0.0,
    device: Device = "auto",
    precision: SamplingPrecision = "32-true",
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Evaluate a model on held-out patients and write a report.

    Measures reconstruction and, for a prior, generation, memorization and downstream use of the samples. If
    the evaluation is interrupted, the same command resumes it.
    """
    from slicebook.api.evaluation import evaluate as run_evaluation

    chosen = None if parts is None else [part.strip() for part in parts.split(",")]
    report = run_evaluation(
        model,
        data,
        out,
        parts=chosen,
        split=split,
        codecs=codecs,
        samples=samples,
        refine=refine,
        guidance=guidance,
        steps=steps,
        decoder_steps=decoder_steps,
        device=device,
        precision=precision,
        seed=seed,
        say=say,
        counter=counter,
    )
    show(report, report.table(), as_json)
    reasons = [f"{part}: {report.skipped[part]}" for part in chosen or () if part in report.skipped]
    if reasons:
        raise DataError(f"{out}: not all parts could be evaluated. {'; '.join(reasons)}")

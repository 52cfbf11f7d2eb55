"""The command that evaluates a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
from slicebook.errors import ConfigError, DataError
from slicebook.signals import raised_signals

if TYPE_CHECKING:
    from slicebook.evaluation.report import Evaluation

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
    from slicebook.data.dataset import PreparedData
    from slicebook.devices import choose_device
    from slicebook.evaluation.evaluate import evaluate as run_evaluation
    from slicebook.models.checkpoint import find_model
    from slicebook.models.sampling import SamplingSettings

    find_model(model)  # a missing model is reported before missing data
    chosen = None if parts is None else [part.strip() for part in parts.split(",")]
    report = run_evaluation(
        model,
        PreparedData.open(data),
        out,
        parts=chosen,
        split=split,
        codecs=codecs,
        samples=samples,
        refine=refine,
        settings=SamplingSettings(steps, decoder_steps, guidance),
        device=choose_device(device),
        precision=precision,
        seed=seed,
        say=say,
        counter=counter,
    )
    _finish(report, out, as_json)
    _raise_if_skipped(report, out, chosen or ())


def _raise_if_skipped(report: "Evaluation", out: Path, parts: Sequence[str]) -> None:
    """Raise `DataError` if a requested part could not be evaluated."""
    reasons = [f"{part}: {report.skipped[part]}" for part in parts if part in report.skipped]
    if reasons:
        raise DataError(f"{out}: not all parts could be evaluated. {'; '.join(reasons)}")


def _finish(report: "Evaluation", out: Path, as_json: bool) -> None:
    """Write the page, update an existing card, and print the scores."""
    from slicebook.reporting.html import write_page
    from slicebook.reporting.model_card import CARD_NAME, write_card

    page = write_page(out)
    if (out / CARD_NAME).is_file():  # of an earlier evaluation, so it is out of date
        try:
            write_card(out)
        except ConfigError as error:
            say(f"warning: the card is of an earlier report. {error}")
    for warning in report.warnings:
        say(f"warning: {warning}")
    say(f"page: {page}")
    show(report, report.table(), as_json)

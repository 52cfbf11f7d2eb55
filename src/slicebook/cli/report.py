"""Commands that write documents from evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook.cli.options import Json, out_option, say, show

Report = Annotated[
    Path, typer.Argument(metavar="REPORT", help="Folder written by `slicebook evaluate`, or its report.json.")
]


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT",
            help="Two or more folders written by `slicebook evaluate`, or their report.json.",
        ),
    ],
    out: Annotated[Path | None, out_option("FILE.md", "Also write the table to this Markdown file.")] = None,
    as_json: Json = False,
) -> None:
    """Show several evaluations in one table. Warns if they are not comparable."""
    from slicebook.reporting.comparison import compare_reports, write_comparison

    comparison = compare_reports(reports)
    for warning in (*(f"not comparable: {line}" for line in comparison.differences), *comparison.warnings):
        say(f"warning: {warning}")
    if out:
        write_comparison(comparison, out)
    show(comparison, comparison.table(), as_json)


def card(
    report: Report,
    out: Annotated[Path | None, out_option("FILE.md", "Output file. Default: REPORT/MODEL_CARD.md.")] = None,
) -> None:
    """Write a model card from an evaluation.

    The card states the intended use, the training data, the scores and the limits of the model.
    """
    from slicebook.reporting.model_card import write_card

    typer.echo(write_card(report, out))

"""Commands that turn evaluations into documents."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook.cli.options import Json, say, show

Report = Annotated[
    Path, typer.Argument(metavar="REPORT", help="Folder that `slicebook evaluate` wrote, or its report.json.")
]


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT",
            help="Folders that `slicebook evaluate` wrote, or their report.json; two or more.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Also write the table as Markdown.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put several evaluations in one table, and warn where they are not comparable."""
    from slicebook.reporting.comparison import compare_reports, write_comparison

    comparison = compare_reports(reports)
    for warning in (*(f"not comparable: {line}" for line in comparison.differences), *comparison.warnings):
        say(f"warning: {warning}")
    if out:
        write_comparison(comparison, out)
    show(comparison, comparison.table(), as_json)


def card(
    report: Report,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Output file; REPORT/MODEL_CARD.md by default."),
    ] = None,
) -> None:
    """Write the model card of an evaluation: the model, its intended use, and its scores."""
    from slicebook.reporting.model_card import write_card

    typer.echo(write_card(report, out))
